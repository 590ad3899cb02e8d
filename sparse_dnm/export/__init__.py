"""Trained networks in forms that run without Python; see docs/ship.md."""

from sparse_dnm.export.arrays import to_npz
from sparse_dnm.export.c_program import CProgram, to_c
from sparse_dnm.export.compiler import code_bytes
from sparse_dnm.export.onnx_file import to_onnx
from sparse_dnm.export.program import save_program, to_program
from sparse_dnm.lowering.network import Folded

__all__ = ["CProgram", "Folded", "code_bytes", "save_program", "to_c", "to_npz", "to_onnx", "to_program"]
