"""Where the data of a run came from."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sparse_dnm.data.datasets import NAMES, Dataset
from sparse_dnm.data.datasets import load as load_data


@dataclass(frozen=True)
class DataSource:
    """Where a run's data came from; paths become absolute, so that the run can be reloaded from anywhere."""

    dataset: str  # toy, digits, mnist, or the path of a file
    data_dir: str | None = None  # folder of mnist's files
    target: str | None = None  # label column of a .csv file

    def __post_init__(self) -> None:
        if self.is_file:
            object.__setattr__(self, "dataset", os.path.abspath(os.path.expanduser(self.dataset)))
        if self.data_dir is not None:
            object.__setattr__(self, "data_dir", os.path.abspath(os.path.expanduser(self.data_dir)))

    @property
    def is_file(self) -> bool:
        """The data are a file, not a data set known by name."""
        return self.dataset not in NAMES and Path(self.dataset).suffix.lower() in (".npz", ".csv")

    def moved(self, folder: Path) -> DataSource:
        """The same data, now in ``folder``."""
        name = str(folder / Path(self.dataset).name) if self.is_file else self.dataset
        return replace(self, dataset=name, data_dir=str(folder))

    def load(self) -> Dataset:
        """Read the data."""
        return load_data(self.dataset, None if self.data_dir is None else Path(self.data_dir), self.target)


def describe(data: Dataset) -> dict[str, Any]:
    """Facts of the data as JSON values, with a SHA-256 of all samples."""
    digest = hashlib.sha256()
    for tensor in (data.x_train, data.y_train, data.x_test, data.y_test):
        digest.update(tensor.contiguous().numpy().data)
    return {**data.describe(), "sha256": digest.hexdigest()}
