"""Where the data of a run came from."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sparse_dnm.data.built_in import VERSION
from sparse_dnm.data.datasets import Dataset, is_file_name, load_as
from sparse_dnm.data.options import Reading, names_in


@dataclass(frozen=True)
class DataSource:
    """Where a run's data came from; paths become absolute, so that the run can be reloaded from anywhere."""

    dataset: str  # one of `datasets.NAMES`, or the path of a file
    data_dir: str | None = None  # folder of mnist's files
    target: str | Sequence[str] | None = None  # label column of a table, or several
    reading: Reading = field(default_factory=Reading)  # the other options; a dict of them becomes one
    version: int = VERSION  # of the samples of toy: 1 in runs of earlier versions, whose config.json names none

    def __post_init__(self) -> None:
        reading = self.reading if isinstance(self.reading, Reading) else Reading(**self.reading)
        names = names_in(self.target) or reading.target
        object.__setattr__(self, "target", names[0] if len(names) == 1 else names or None)
        object.__setattr__(self, "reading", replace(reading, target=()))
        if self.is_file:
            object.__setattr__(self, "dataset", os.path.abspath(os.path.expanduser(self.dataset)))
        if self.data_dir is not None:
            object.__setattr__(self, "data_dir", os.path.abspath(os.path.expanduser(self.data_dir)))

    @property
    def is_file(self) -> bool:
        """The data are a file, not a data set known by name."""
        return is_file_name(self.dataset)

    def moved(self, place: Path) -> DataSource:
        """The same data, now in the folder ``place``; that of a file may be the file itself."""
        if self.is_file and place.is_file():
            return replace(self, dataset=str(place), data_dir=str(place.parent))
        name = str(place / Path(self.dataset).name) if self.is_file else self.dataset
        return replace(self, dataset=name, data_dir=str(place))

    def load(self) -> Dataset:
        """Read the data."""
        folder = None if self.data_dir is None else Path(self.data_dir)
        reading = replace(self.reading, target=names_in(self.target))
        return load_as(self.dataset, folder, reading, version=self.version)


def describe(data: Dataset) -> dict[str, Any]:
    """Facts of the data as JSON values, with a SHA-256 of all samples, and of weights and lengths if there are any."""
    digest = hashlib.sha256()
    optional = (data.weights, data.x_val, data.y_val, data.lengths_train, data.lengths_test, data.lengths_val)
    for tensor in (data.x_train, data.y_train, data.x_test, data.y_test, *(t for t in optional if t is not None)):
        digest.update(tensor.contiguous().numpy().data)
    return {**data.describe(), "sha256": digest.hexdigest()}
