"""The files of the formats that hold a network and its metadata in one file."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np

from sparse_dnm.export.arrays import to_npz
from sparse_dnm.export.onnx_file import to_onnx
from sparse_dnm.export.program import save_program
from sparse_dnm.io import write_atomic
from sparse_dnm.predictor import Predictor


def _onnx(predictor: Predictor, preprocessing: bool) -> bytes:
    content: bytes = to_onnx(predictor.model, predictor.preprocessing, raw=preprocessing).SerializeToString()
    return content


def _npz(predictor: Predictor, preprocessing: bool) -> bytes:
    content, arrays = io.BytesIO(), cast(dict[str, Any], to_npz(predictor.model, predictor.preprocessing))
    np.savez(content, **arrays)
    return content.getvalue()


def _program(predictor: Predictor, preprocessing: bool, plain: bool) -> bytes:
    content = io.BytesIO()
    save_program(content, predictor.model, predictor.preprocessing, plain=plain)
    return content.getvalue()


WRITERS: dict[str, tuple[str, Callable[[Predictor, bool], bytes]]] = {  # how a file's name ends, and its content
    "onnx": ("onnx", _onnx),
    "npz": ("npz", _npz),
    "torch": ("pt2", functools.partial(_program, plain=False)),
    "torch-plain": ("pt2", functools.partial(_program, plain=True)),
}
TAKES_SAMPLES = ("onnx",)  # formats that may take raw samples


def write_file(folder: Path, name: str, predictor: Predictor, form: str, preprocessing: bool = False) -> Path:
    """Write NAME.onnx, NAME.npz or NAME.pt2 into a folder, which is made if it is missing, and return its path.

    form           a key of WRITERS
    preprocessing  whether the network takes raw samples and gives predictions; only ONNX models can

    Raises ValueError for another format that should, or a name with folders; what `to_onnx`, `to_npz` and `to_program`
    raise; OSError naming a file that cannot be written.
    """
    if preprocessing and form not in TAKES_SAMPLES:
        raise ValueError(
            f"--preprocessing: the format {form} holds the preprocessing as metadata and does not compute it; leave "
            f"the option out, or choose {' or '.join(TAKES_SAMPLES)}"
        )
    if name in ("", ".", "..") or Path(name).name != name:
        raise ValueError(f"--name {name} must be the name of a file, without folders")
    suffix, content = WRITERS[form]
    path = folder / f"{name}.{suffix}"
    found = content(predictor, preprocessing)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(path, found)
    return path
