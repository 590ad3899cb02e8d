"""Data sets: toy, digits, mnist and the user's own .npz or .csv, as tensors with a train/test split."""

from sparse_dnm.data.datasets import NAMES, BatchOrder, DataError, Dataset, load

__all__ = ["NAMES", "BatchOrder", "DataError", "Dataset", "load"]
