"""Data sets: those with a name and the user's own tables and arrays, as tensors with a train/test split."""

from sparse_dnm.data.datasets import NAMES, BatchOrder, DataError, Dataset, from_arrays, from_frame, load
from sparse_dnm.data.options import Reading
from sparse_dnm.data.preprocessing import Preprocessing
from sparse_dnm.data.table_files import read_table

__all__ = [
    "NAMES",
    "BatchOrder",
    "DataError",
    "Dataset",
    "Preprocessing",
    "Reading",
    "from_arrays",
    "from_frame",
    "load",
    "read_table",
]
