"""A network lowered to what it is shipped as: its normal form, where its cells lie, and its loops in C."""

from sparse_dnm.lowering.network import Folded

__all__ = ["Folded"]
