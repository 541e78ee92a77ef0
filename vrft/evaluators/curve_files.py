"""Write and log the tables and the precision-recall curves of average precision."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lightning.pytorch.loggers import Logger
from PIL import Image

from vrft.evaluators.average_precision import Convention, Curves, Format
from vrft.evaluators.calibration import Bin, Calibration
from vrft.evaluators.curves_picture import draw_curves
from vrft.loggers import show_picture, show_table
from vrft.utils.files import write_table

COLUMNS = ["category", "AP"]


class CurveFiles(NamedTuple):
    """AP per category, precision-recall curves and, if confidences are stated, calibration."""

    curves: Curves
    calibration: Calibration | None
    format: Format
    convention: Convention

    def write(self, folder: Path) -> None:
        """Write the files to a folder. Their names begin with the format."""
        write_table(folder / f"{self.format}_per_category.csv", COLUMNS, self._per_category())
        draw_curves(self.curves, folder / f"{self.format}_precision_recall.png")
        if self.calibration is not None:
            write_table(folder / f"{self.format}_calibration.csv", Bin._fields, self.calibration.bins)

    def show(self, loggers: Sequence[Logger], stage: str, folder: Path, step: int) -> None:
        """Log the files that `write` has written to `folder`."""
        show_table(loggers, f"{stage}/{self.format}/per_category", COLUMNS, self._per_category(), step)
        if self.calibration is not None:
            show_table(loggers, f"{stage}/{self.format}/calibration", Bin._fields, self.calibration.bins, step)
        with Image.open(folder / f"{self.format}_precision_recall.png") as picture:
            show_picture(loggers, f"{stage}/{self.format}/precision_recall", picture, step)

    def _per_category(self) -> list[tuple[str, float]]:
        return sorted(self.curves.per_category(self.convention).items())
