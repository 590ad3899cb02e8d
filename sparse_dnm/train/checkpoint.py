"""Files of a run directory: atomic writes, the checkpoint, JSON, and the lines of metrics.jsonl."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import nn
from torch.optim import Optimizer

from sparse_dnm.config import ManifoldConfig, TrainConfig, from_dict
from sparse_dnm.data.datasets import BatchOrder, Dataset
from sparse_dnm.data.source import DataSource, describe
from sparse_dnm.engine.device import device_of
from sparse_dnm.io import CheckpointError, doing, read_json, write_atomic, write_json
from sparse_dnm.machine import machine, versions

FORMAT = "sparse-dnm checkpoint"
VERSION = 1
CHECKPOINT = "checkpoint.safetensors"
CONFIG = "config.json"
METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
# These may change within a run:
CHANGEABLE = ("steps", "executor", "threads", "device", "log_every", "checkpoint_every", "snapshot_every")
DATA_CHANGEABLE = ("name",)  # the path of a file that has moved
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
    about = {"format": FORMAT, "version": VERSION, **checkpoint.header}
    # One entry only: safetensors writes several in an order that varies between runs.
    write_atomic(path, to_safetensors(tensors, {"sparse_dnm": json.dumps(about, allow_nan=False)}))


def load(path: Path) -> Checkpoint:
    """Read a file written by :func:`save`.

    Raises CheckpointError naming the file and the reason: missing, truncated, not safetensors, another
    program's or another version's, or holding NaN or infinity.
    """
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist; is {path.parent} the directory of a run?")
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"checkpoint {path} {_fault(path)} ({error})") from None
    try:
        header = json.loads(about["sparse_dnm"])
        found = header["format"], header["version"]
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"checkpoint {path} is a safetensors file of another program") from None
    if found != (FORMAT, VERSION):
        raise CheckpointError(
            f"checkpoint {path} is of format {found[0]!r} version {found[1]}; "
            f"this version of sparse-dnm reads {FORMAT!r} version {VERSION}"
        )
    _check_finite(path, tensors)
    return Checkpoint(tensors, header)


def _fault(path: Path) -> str:
    """Why safetensors could not read the file; its first 8 bytes are the length of the JSON that follows."""
    with open(path, "rb") as file:
        head = file.read(9)
    if len(head) < 9:
        return f"is truncated to {path.stat().st_size} bytes"
    return "is truncated or damaged" if head[8:] == b"{" else "is not a safetensors file"


def _check_finite(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"checkpoint {path}: tensor {name} holds NaN or infinity")


def pack(
    model: nn.Module, optimizer: Optimizer, order: BatchOrder, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """Every tensor that the next update depends on; those of the optimiser are named after their parameter."""
    tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer/{name}/{key}"] = (
                value.clone() if key == "step" else value
            )  # parameters may share one step
    tensors.update({f"order/{name}": value for name, value in order.state().items()})
    tensors["generator"] = generator.get_state()
    return tensors


def unpack(
    saved: Checkpoint, model: nn.Module, optimizer: Optimizer, order: BatchOrder, generator: torch.Generator
) -> None:
    """Restore the tensors of :func:`pack`, except the model's, which must be loaded already."""
    for name, parameter in model.named_parameters():
        state = saved.group(f"optimizer/{name}")
        if state and state.keys() != {"step", "exp_avg", "exp_avg_sq"}:
            raise ValueError(f"the optimiser's state of {name} is {', '.join(state)}, not that of Adam")
        if name == "edge_weight" and "model/structure_digest" not in saved.tensors:
            state = {key: _in_slots(value, len(parameter)) for key, value in state.items()}
        for key, value in state.items():
            if value.shape not in (parameter.shape, ()):
                shapes = f"{tuple(value.shape)}, not {tuple(parameter.shape)}"
                raise ValueError(f"the optimiser's {key} of {name} has shape {shapes}")
        if state:
            optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in state.items()}
    order.load_state(saved.group("order"))
    generator.set_state(saved.tensors["generator"])


def _in_slots(moment: torch.Tensor, capacity: int) -> torch.Tensor:
    """A moment of a file from before there were slots, one number per candidate: candidate k goes to slot k."""
    if moment.ndim == 0 or len(moment) > capacity:
        return moment
    return torch.cat([moment, moment.new_zeros(capacity - len(moment))])


def write_config(
    out: Path,
    manifold: ManifoldConfig,
    train: TrainConfig,
    source: DataSource | None,
    description: dict[str, Any],
    device: torch.device,
) -> None:
    """Write what `read_config` reads, and the versions and machine of the run."""
    about = {
        "manifold": asdict(manifold),
        "train": asdict(train),
        "data": description,
        "source": source and asdict(source),
        "versions": versions(),
        "machine": machine(device),
    }
    write_json(out / CONFIG, about)


def read_config(out: Path) -> tuple[ManifoldConfig, TrainConfig, DataSource | None, dict[str, Any]]:
    """Model and training configuration, data source and description of the data of the run in ``out``.

    Raises CheckpointError naming the file and what is wrong in it.
    """
    path = out / CONFIG
    values = read_json(path)
    try:
        source = None if values["source"] is None else DataSource(**values["source"])
        manifold = from_dict(ManifoldConfig, values["manifold"])
        return manifold, from_dict(TrainConfig, renewed(values["train"])), source, dict(values["data"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} does not describe a run: {error}") from None


def load_run(
    out: Path, data: Dataset, changes: Mapping[str, Any]
) -> tuple[ManifoldConfig, TrainConfig, DataSource | None, Checkpoint]:
    """The configs, data source and checkpoint of the run in ``out``, with ``changes`` to fields that are not None.

    Raises CheckpointError if a file is unusable or belongs to another run, or if ``data`` are not the run's, and
    ValueError if its device is not here.
    """
    manifold, train, source, description = read_config(out)
    path = out / CHECKPOINT
    saved = load(path)
    _check_same(path, "manifold", saved.header, asdict(manifold), _defaults(ManifoldConfig))
    _check_same(path, "data", saved.header, description, {})
    header = {"train": renewed(saved.header.get("train") or {})}
    _check_same(path, "train", header, asdict(train), _defaults(TrainConfig))
    changed = _differences(description, describe(data))
    if changed:
        what = "contents" if changed == ["sha256"] else ", ".join(k for k in changed if k != "sha256")
        raise CheckpointError(
            f"the data {data.name} have changed since the run in {out} began ({what}); give the original data, "
            "with --data-dir where they are elsewhere, or start a new run"
        )
    train = replace(train, **{name: value for name, value in changes.items() if value is not None})
    try:
        device_of(train.device)
    except ValueError as error:
        if changes.get("device") is None:
            raise ValueError(f"{out} was trained on {train.device}; give --device cpu to go on here: {error}") from None
        raise
    return manifold, train, source, saved


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
    found = {**defaults, **(holder.get(what) or {})}
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
        raise ValueError(f"{out} is a file; --out must name a directory")
    held = [name for name in RUN_FILES if (out / name).exists()]
    if held:
        raise ValueError(
            f"{out} already holds a run ({', '.join(held)}); name another directory with --out, "
            f"or continue that run with --resume {out}"
        )


def fresh_directory(parent: Path, dataset: str, seed: int) -> Path:
    """Create ``parent/DATASET-SEED-n`` with the first n = 1, 2, ... that is free, and return it."""
    with doing("create the directory", parent):
        parent.mkdir(parents=True, exist_ok=True)
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
        except (ValueError, KeyError, TypeError):
            return False

    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    write_atomic(path, b"".join(line for line in lines if belongs(line)))
