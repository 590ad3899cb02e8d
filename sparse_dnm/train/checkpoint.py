"""Files of a run directory: atomic writes, the checkpoint, JSON, and the lines of metrics.jsonl."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_safetensors
from safetensors.torch import save as to_safetensors

from sparse_dnm.config import ManifoldConfig, TrainConfig, from_dict
from sparse_dnm.data.datasets import Dataset
from sparse_dnm.data.preprocessing import Preprocessing
from sparse_dnm.data.source import DataSource, describe
from sparse_dnm.engine.device import device_of, threads_here
from sparse_dnm.io import (
    UNFIT,
    CheckpointError,
    check_seal,
    doing,
    make_directory,
    read_json,
    sealed,
    write_atomic,
    write_json,
)
from sparse_dnm.machine import machine, versions
from sparse_dnm.train.sealed import BLANK, is_whole, seal
from sparse_dnm.wording import words

FORMAT = "sparse-dnm checkpoint"
VERSION = 2  # files have a digest
EARLIER = (1,)  # versions that are read as well: without one
CHECKPOINT = "checkpoint.safetensors"
CONFIG = "config.json"
METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
# These may change within a run:
CHANGEABLE = ("steps", "executor", "threads", "device", "log_every", "checkpoint_every", "snapshot_every")
DATA_CHANGEABLE = ("name", "per_step")  # the path of a file that has moved; what the first versions did not say
RUN_FILES = (CONFIG, CHECKPOINT, METRICS, SUMMARY)


@dataclass(frozen=True)
class Checkpoint:
    """The contents of one file: named tensors, and everything else as parsed JSON."""

    tensors: dict[str, torch.Tensor]
    header: dict[str, Any]

    def group(self, prefix: str) -> dict[str, torch.Tensor]:
        """The tensors named ``prefix/name``, by ``name``."""
        start = prefix + "/"
        return {name[len(start) :]: t for name, t in self.tensors.items() if name.startswith(start)}


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write one safetensors file.  Raises CheckpointError, before writing, if a tensor is not finite."""
    _check_finite(path, checkpoint.tensors)
    tensors = {name: t.detach().contiguous() for name, t in checkpoint.tensors.items()}
    about = {"digest": BLANK.decode(), "format": FORMAT, "version": VERSION, **checkpoint.header}
    # One entry only: safetensors writes several in an order that varies between runs.
    write_atomic(path, seal(to_safetensors(tensors, {"sparse_dnm": json.dumps(about, allow_nan=False)})))


def load(path: Path) -> Checkpoint:
    """Read a file written by :func:`save`.

    Raises CheckpointError naming the file and the reason: missing, not a byte as it was written, not safetensors,
    another program's or another version's, or holding NaN or infinity.
    """
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist; is {path.parent} the directory of a run?")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"checkpoint {path} cannot be read ({error})") from None
    header = _header(path, content)
    if ("digest" in header or header["version"] not in EARLIER) and not is_whole(content, header.pop("digest", None)):
        raise CheckpointError(
            f"checkpoint {path} is truncated or damaged: its bytes are not those that were written (SHA-256); use a "
            "copy of it, or train again"
        )
    try:
        tensors = from_safetensors(content)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path} is truncated or damaged ({error})") from None
    _check_finite(path, tensors)
    return Checkpoint(tensors, header)


def _header(path: Path, content: bytes) -> dict[str, Any]:
    """What the first bytes of a checkpoint say of it: their number, in 8 bytes, and JSON."""
    if len(content) < 9:
        raise CheckpointError(f"checkpoint {path} is truncated to {len(content)} bytes")
    if content[8:9] != b"{":
        raise CheckpointError(f"checkpoint {path} is not a safetensors file")
    try:
        parsed = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"checkpoint {path} is truncated or damaged ({error})") from None
    try:
        header: dict[str, Any] = json.loads(parsed["__metadata__"]["sparse_dnm"])
        found = header["format"], header["version"]
    except UNFIT:
        raise CheckpointError(f"checkpoint {path} is a safetensors file of another program") from None
    if found not in [(FORMAT, version) for version in (*EARLIER, VERSION)]:
        raise CheckpointError(
            f"checkpoint {path} is of format {found[0]!r} version {found[1]}; "
            f"this version of sparse-dnm reads {FORMAT!r} version {EARLIER[0]} to {VERSION}"
        )
    return header


def step_of(path: Path, saved: Checkpoint) -> int:
    """The updates made before it was saved.  Raises CheckpointError if its header does not say."""
    step = saved.header.get("step")
    if not isinstance(step, int) or isinstance(step, bool) or step < 0:
        raise CheckpointError(f"checkpoint {path} is not that of a training: step={step!r} must be an integer >= 0")
    return step


def check_unchanged(out: Path, step: int) -> None:
    """Raise CheckpointError unless the checkpoint of the run in ``out`` is that of ``step``."""
    found = load(out / CHECKPOINT).header.get("step")
    if found != step:
        raise CheckpointError(
            f"{out} has been trained on, from step {step} to {found}, since its checkpoint was read; read it again"
        )


def _check_finite(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"checkpoint {path}: tensor {name} holds NaN or infinity")


def write_config(
    out: Path,
    manifold: ManifoldConfig,
    train: TrainConfig,
    source: DataSource | None,
    description: dict[str, Any],
    device: torch.device,
    preprocessing: Preprocessing | None = None,
) -> None:
    """Write what `read_config` and `read_preprocessing` read, and the versions and machine of the run."""
    about = {
        "manifold": asdict(manifold),
        "train": asdict(train),
        "data": description,
        "source": source and asdict(source),
        "preprocessing": preprocessing and sealed(preprocessing.to_json()),
        "versions": versions(),
        "machine": machine(device),
    }
    write_json(out / CONFIG, about)


def read_config(out: Path) -> tuple[ManifoldConfig, TrainConfig, DataSource | None, dict[str, Any]]:
    """Model and training configuration, data source and description of the data of the run in ``out``.

    Raises CheckpointError naming the file and what is wrong in it.
    """
    path = out / CONFIG
    if not path.exists() and _never_began(out / CHECKPOINT):
        raise CheckpointError(
            f"{path} does not exist: the run ended while its directory was made, and nothing was trained; begin it "
            "again, in the same directory"
        )
    values = read_json(path)
    try:
        source = None
        if values["source"] is not None:
            about = {"version": 1, "reading": {"earlier": True}, **values["source"]}  # earlier versions knew neither
            source = DataSource(**{**about, "reading": {"rules": 1, **about["reading"]}})
        manifold = from_dict(ManifoldConfig, values["manifold"])
        return manifold, from_dict(TrainConfig, renewed(values["train"])), source, dict(values["data"])
    except UNFIT as error:
        raise CheckpointError(f"{path} does not describe a run: {error}") from None


def keep_preprocessing(out: Path, preprocessing: Preprocessing) -> None:
    """Write it into the config.json of a run of an earlier version."""
    write_json(out / CONFIG, {**read_json(out / CONFIG), "preprocessing": sealed(preprocessing.to_json())})


def read_preprocessing(out: Path) -> Preprocessing | None:
    """How the run in ``out`` makes inputs of samples and predictions of outputs; None in runs of earlier versions.

    Raises CheckpointError naming the file and what is wrong in it.
    """
    values = read_json(out / CONFIG).get("preprocessing")
    try:
        if values is None:
            return None
        made = Preprocessing.from_json(values)
        check_seal(values)
        return made
    except ValueError as error:
        raise CheckpointError(f"{out / CONFIG}, preprocessing: {error}") from None


def read_run(out: Path) -> tuple[ManifoldConfig, TrainConfig, DataSource | None, dict[str, Any], Checkpoint]:
    """What `read_config` reads, and the checkpoint of the run in ``out``.

    Raises CheckpointError if a file is unusable or belongs to another run.
    """
    manifold, train, source, description = read_config(out)
    path = out / CHECKPOINT
    saved = load(path)
    step_of(path, saved)
    _check_same(path, "manifold", saved.header, asdict(manifold), _defaults(ManifoldConfig))
    _check_same(path, "data", saved.header, description, {})
    held = saved.header.get("train")
    header = {"train": renewed(held if isinstance(held, dict) else {})}
    _check_same(path, "train", header, asdict(train), _defaults(TrainConfig))
    return manifold, train, source, description, saved


def check_same_data(out: Path, description: dict[str, Any], data: Dataset) -> None:
    """Raise CheckpointError if ``data`` are not those of the run in ``out``, whose config.json describes them."""
    changed = _differences(description, describe(data))
    kept = read_preprocessing(out)
    if not changed and kept is not None and data.preprocessing is not None:
        changed = kept.differences(data.preprocessing)  # what standardised values do not show
    if changed:
        hint = "; data.load('toy', version=1) gives those of earlier versions" if data.name == "toy" else ""
        what = "contents" if changed == ["sha256"] else ", ".join(k for k in changed if k != "sha256")
        raise CheckpointError(
            f"the data {data.name} have changed since the run in {out} began ({what}); give the original "
            f"data{words().elsewhere}, or start a new run{hint}"
        )


def load_run(
    out: Path, data: Dataset, changes: Mapping[str, Any]
) -> tuple[ManifoldConfig, TrainConfig, DataSource | None, Checkpoint, list[str]]:
    """The configs, data source and checkpoint of the run in ``out``, with ``changes`` to fields that are not None.

    Where fewer CPUs are than the run has threads, it gets as many: the last value, notes for the reader, says so.
    Raises CheckpointError if a file is unusable or belongs to another run, or if ``data`` are not the run's, and
    ValueError if its device is not here.
    """
    manifold, train, source, description, saved = read_run(out)
    check_same_data(out, description, data)
    train, notes = replace(train, **{name: value for name, value in changes.items() if value is not None}), []
    here = threads_here(train.threads)
    if here != train.threads and changes.get("threads") is None:
        notes = [
            f"{out} was trained on {train.threads} threads; it goes on with {here}, as many as there are CPUs here"
        ]
        train = replace(train, threads=here)
    try:
        device_of(train.device)
    except ValueError as error:
        if changes.get("device") is None:
            raise ValueError(
                f"{out} was trained on {train.device}; give {words().give('device', 'cpu')} to go on here: {error}"
            ) from None
        raise
    return manifold, train, source, saved, notes


def renewed(train: dict[str, Any]) -> dict[str, Any]:
    """Fields of a TrainConfig, perhaps of an earlier version: then as they must be for the same training."""
    if "fine_tune" in train:
        return train
    fields = dict(train)
    steps, trimmed = fields.get("steps", TrainConfig.steps), fields.pop("trim_steps", 500)
    share = 0.3 if fields.get("target_edges") else 0.0
    if fields.get("budget_us") and steps:
        share = max(min(trimmed, steps // 4) - 0.5, 0.5) / steps  # is rounded up to whole steps
    return {"fine_tune": share, "kappa": 0.0, "validation": 0.0, **fields}


def _defaults(config: type) -> dict[str, Any]:
    """The fields of a config that have a default: files of earlier versions lack newer fields."""
    return {field.name: field.default for field in fields(config) if field.default is not MISSING}


def _check_same(
    path: Path, what: str, holder: dict[str, Any], expected: dict[str, Any], defaults: dict[str, Any]
) -> None:
    """Raise CheckpointError listing the _differences between ``holder[what]``, or the defaults, and ``expected``."""
    defaults, expected = json.loads(json.dumps([defaults, expected]))  # tuples become lists, as in the file
    held = holder.get(what)
    found = {**defaults, **(held if isinstance(held, dict) else {})}
    keys = _differences(found, expected)
    if keys:
        listed = ", ".join(f"{k} is {found.get(k)!r} there, {expected.get(k)!r} here" for k in keys)
        raise CheckpointError(f"{path} belongs to another run ({what}: {listed})")


def _differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Keys that differ, except those that may."""
    free = (*CHANGEABLE, *DATA_CHANGEABLE)
    return [k for k in {**found, **expected} if k not in free and found.get(k) != expected.get(k)]


def check_free(out: Path) -> None:
    """Raise ValueError if ``out`` already holds a run, or is not a directory."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; {words().no_directory}")
    held = [name for name in RUN_FILES if (out / name).exists()]
    if held == [CHECKPOINT] and _never_began(out / CHECKPOINT):
        return
    if held:
        raise ValueError(
            f"{out} already holds a run ({', '.join(held)}); {words().other_out}, or {words().resume(out)}"
        )


def _never_began(path: Path) -> bool:
    """The checkpoint is what is left of a run that ended while its directory was made."""
    with contextlib.suppress(CheckpointError):
        return load(path).header.get("step") == 0
    return False


def fresh_directory(parent: Path, dataset: str, seed: int) -> Path:
    """Create ``parent/DATASET-SEED-n`` with the first n = 1, 2, ... that is free, and return it."""
    make_directory(parent)
    n = 1
    while True:
        out = parent / f"{dataset}-{seed}-{n}"
        try:
            with doing("create the directory", out):
                out.mkdir()
        except FileExistsError:
            n += 1
        else:
            return out


def cut_metrics(path: Path, step: int) -> None:
    """Keep the lines of ``path`` up to ``step``; later ones, and an incomplete last one, belong to lost steps."""

    def belongs(line: bytes) -> bool:
        try:
            return line.endswith(b"\n") and json.loads(line)["step"] <= step
        except UNFIT:
            return False

    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    write_atomic(path, b"".join(line for line in lines if belongs(line)))
