"""A training in TensorBoard's own files: scalars, the matrix of strengths as an image, strengths as a histogram."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb

from sparse_dnm.config import ManifoldConfig
from sparse_dnm.report import style
from sparse_dnm.report.history import QUARTILES
from sparse_dnm.report.views import Grid, saturation
from sparse_dnm.train.snapshots import Snapshot

FOLDER = "tensorboard"
MEASURED = "measured_seconds"
NEGATIVE, POSITIVE = (np.array(to_rgb(colour)) for colour in (style.NEGATIVE, style.POSITIVE))


class TensorBoardLog:
    """Writes into ``out``/tensorboard; what an earlier process wrote there from ``step`` on is replaced.

    Use it in ``with``; its methods are the callbacks of `Trainer.run`.  Raises ValueError if TensorBoard is missing.
    """

    def __init__(self, out: Path, config: ManifoldConfig, step: int = 0) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ValueError(
                f"--tensorboard needs TensorBoard, which cannot be imported ({error}): pip install tensorboard, or "
                "the extra '.[tensorboard]'"
            ) from None
        self.config, self.grid = config, Grid.of(config)
        self._open = lambda: SummaryWriter(str(out / FOLDER), purge_step=step + 1 if step else None)
        self._opened: Any = None
        self._has_band = False

    @property
    def _writer(self) -> Any:
        """The writer, made at its first use: the run directory may not exist before."""
        self._opened = self._opened or self._open()
        return self._opened

    def on_log(self, record: dict[str, Any]) -> None:
        """A scalar for every figure of a line of metrics.jsonl; and once, where the measured time has quartiles, the
        chart "measured time" under Custom scalars, which shows it with a band between them."""
        if not self._has_band and all(name in record for name in (MEASURED, *QUARTILES)):
            self._has_band = True
            self._writer.add_custom_scalars(
                {"time": {"measured time": ["Margin", [*map(_tag, (MEASURED, *QUARTILES))]]}}
            )
        for name, value in record.items():
            if name != "step" and isinstance(value, (int, float)):
                self._writer.add_scalar(_tag(name), value, record["step"])

    def on_snapshot(self, structure: Snapshot) -> None:
        """The strengths, as an image with a cell per pair of neurons or several, and as a histogram."""
        cells = self.grid.cells(structure, self.config)
        share = np.clip(np.abs(cells) / saturation(structure), 0, 1)[..., None]
        image = 1 - share * (1 - np.where(cells[..., None] > 0, POSITIVE, NEGATIVE))
        self._writer.add_image("strengths", image.astype(np.float32), structure.step, dataformats="HWC")
        if len(structure.strengths):
            self._writer.add_histogram("strengths", structure.strengths, structure.step)

    def __enter__(self) -> TensorBoardLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._opened is not None:
            self._opened.close()


def _tag(name: str) -> str:
    """The tag of a column of metrics.jsonl: a heading and its name."""
    if name.startswith(("train_", "test_", "validation_")):
        return f"merit/{name}"
    if name in ("loss", "objective", "flow", "speed", "memory"):
        return f"loss/{name}"
    if name in ("edges", "density", "depth", "live", "edges_goal"):
        return f"structure/{name}"
    timed = name.startswith("measured_") or name.endswith("seconds")
    return f"time/{name}" if timed else f"training/{name}"
