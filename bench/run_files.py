"""Generated checkpoints, files of runs and profiles: see `bench.cases`."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from safetensors.torch import load as from_safetensors
from safetensors.torch import save as to_safetensors

from bench.damage import Draw, Misread, bad, changed, damaged, place
from sparse_dnm import data
from sparse_dnm.config import ManifoldConfig, TrainConfig
from sparse_dnm.io import sealed, write_json
from sparse_dnm.model.manifold import DynamicManifold
from sparse_dnm.predictor import read
from sparse_dnm.timing.calibration import Calibration, read_profile
from sparse_dnm.timing.cost_model import FEATURES, CostModel, Quality
from sparse_dnm.timing.probes import Settings
from sparse_dnm.train import checkpoint as files
from sparse_dnm.train.sealed import BLANK, seal
from sparse_dnm.train.trainer import Trainer


@functools.lru_cache(1)
def a_run() -> tuple[Path, bytes, dict[str, Any], Any]:
    """A short training: its directory, the bytes of its checkpoint, its config.json, and its data."""
    path, rng = place("run"), np.random.default_rng(0)
    x = rng.standard_normal((60, 4)).astype(np.float32)
    found = data.from_arrays(x, np.array(["a", "b", "c"])[x[:, :3].argmax(1)])
    config = TrainConfig(steps=4, batch_size=16, speed="proxy", threads=1, executor="columns", early_stopping=True)
    manifold = dataclasses.replace(ManifoldConfig.for_data(4, 3), n_neurons=20)
    model = DynamicManifold(manifold, torch.Generator().manual_seed(0), executor="columns", threads=1)
    Trainer(model, found, config, path).run()
    return path, (path / files.CHECKPOINT).read_bytes(), json.loads((path / files.CONFIG).read_text()), found


def checkpoints(draw: Draw) -> None:
    """Checkpoints with other bytes; whole ones whose header or tensors are not those of a training; config.json."""
    run, good, config, found = a_run()
    (run / files.CONFIG).write_text(json.dumps(config))
    kind = draw(st.sampled_from(["damaged"] * 7 + ["forged"] * 2 + ["config"]))
    if kind == "damaged":
        bytes_ = damaged(draw, good)
        (run / files.CHECKPOINT).write_bytes(bytes_)
        try:
            files.load(run / files.CHECKPOINT)
        except ValueError as error:
            bad(error, files.CHECKPOINT)
        else:
            if bytes_ != good:
                raise Misread("a damaged checkpoint was loaded")
        return
    (run / files.CHECKPOINT).write_bytes(_forged(draw, good) if kind == "forged" else good)
    if kind == "config":
        text = json.dumps(config).encode()
        about = damaged(draw, text, most=1) if draw(st.booleans()) else json.dumps(changed(draw, config)).encode()
        (run / files.CONFIG).write_bytes(about)
    try:
        with suppress(ValueError):
            read(run)
        Trainer.resume(run, found)
    except ValueError as error:
        bad(error)


def _forged(draw: Draw, good: bytes) -> bytes:
    """A checkpoint with another header or other tensors, whose digest is right, or of version 1 without one."""
    size = int.from_bytes(good[:8], "little")
    header = json.loads(json.loads(good[8 : 8 + size])["__metadata__"]["sparse_dnm"])
    tensors = dict(from_safetensors(good))
    if draw(st.booleans()):
        for _ in range(draw(st.integers(1, 3))):
            header = changed(draw, header)
            header = header if isinstance(header, dict) else {}
    if draw(st.booleans()):
        name = draw(st.sampled_from(sorted(tensors)))
        tensors[name] = draw(
            st.sampled_from([torch.zeros(0), torch.ones(3), tensors[name].double(), -tensors[name].int()])
        )
        if draw(st.booleans()):
            del tensors[name]
    if draw(st.booleans()):
        header.pop("digest", None)
        return to_safetensors(tensors, {"sparse_dnm": json.dumps({**header, "format": files.FORMAT, "version": 1})})
    about = {**header, "digest": BLANK.decode(), "format": files.FORMAT, "version": files.VERSION}
    return seal(to_safetensors(tensors, {"sparse_dnm": json.dumps({"digest": about.pop("digest"), **about})}))


@functools.lru_cache(1)
def a_profile() -> dict[str, Any]:
    """The contents of a profile."""
    n, names = 15, FEATURES["columns"]
    counts = np.random.default_rng(0).uniform(1, 9, (n, len(names)))
    model = CostModel("columns", tuple(1e-6 * (k + 1) for k in range(len(names))))
    quality = Quality.of(np.arange(1.0, 6.0), np.arange(1.0, 6.0) ** 1.1)
    pace = {"quiet_seconds": 1e-4, "quiet_date": "2024-02-29", "reference_seconds": 1e-4, "key": {"machine": "x"}}
    made = Calibration(
        model, Settings(), 1, quality, 0.01, 0, 1.0, 1.0, counts, np.ones(n), raw_seconds=np.ones(n), pace=pace
    )
    return made.as_dict()


def profiles(draw: Draw) -> None:
    """Profiles with other values, and with other bytes."""
    path = place("profile.json")
    hit = draw(st.booleans())
    if hit:
        write_json(path, sealed(a_profile()))
        path.write_bytes(damaged(draw, path.read_bytes(), most=1))
    else:
        path.write_text(json.dumps(changed(draw, a_profile())))
    try:
        found = read_profile(path)
    except ValueError as error:
        bad(error, path.name)
        return
    if hit and found.as_dict() != {**a_profile(), "pace": found.pace}:
        raise Misread("a damaged profile was read")
    if not all(math.isfinite(c) and c >= 0 for c in found.model.coefficients):
        raise Misread(f"prices {found.model.coefficients}")
    if not (np.isfinite(found.seconds).all() and np.isfinite(found.counts).all()):
        raise Misread("times or counts that are not finite")
