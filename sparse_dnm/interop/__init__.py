"""SparseDAG from and to the networks of other libraries; see docs/interop.md.

Every ``from_`` function returns a SparseDAG with parameters of its own, detached from what it was made of.
Libraries that are optional are imported when a function needs them.
"""

from sparse_dnm.interop.graphs import from_networkx, to_networkx
from sparse_dnm.interop.labels import Labels, options_of
from sparse_dnm.interop.layered import to_linear, to_module
from sparse_dnm.interop.matrices import from_scipy, from_sparse_tensor, from_torch, to_scipy, to_sparse_tensor, to_torch
from sparse_dnm.interop.modules import from_linear, from_module
from sparse_dnm.interop.neat_genomes import from_neat, to_neat
from sparse_dnm.interop.neat_json import from_neat_json, to_neat_json

__all__ = [
    "Labels",
    "from_linear",
    "from_module",
    "from_neat",
    "from_neat_json",
    "from_networkx",
    "from_scipy",
    "from_sparse_tensor",
    "from_torch",
    "options_of",
    "to_linear",
    "to_module",
    "to_neat",
    "to_neat_json",
    "to_networkx",
    "to_scipy",
    "to_sparse_tensor",
    "to_torch",
]
