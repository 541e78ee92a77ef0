"""Evaluate grounding: IoU of boxes, and of masks under the rules of ReasonSeg (arXiv 2308.00692)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vrft.boxes import Box, iou_matrix
from vrft.errors import ConfigurationError
from vrft.evaluators.base import Evaluator
from vrft.types import Answer, Id, Sample
from vrft.utils.files import write_json

Mask = NDArray[np.bool_]

ACCURACY_IOU = 0.5
"""Minimum IoU of a box that counts as correct."""


class Segmenter(ABC):
    """Converts a box to a mask."""

    @abstractmethod
    def segment(self, image: Image.Image, box: Box) -> Mask:
        """Return the mask of the object in the box, (height, width)."""


class BoxSegmenter(Segmenter):
    """Uses the box itself as the mask: a lower bound that needs no model."""

    def segment(self, image: Image.Image, box: Box) -> Mask:
        mask = np.zeros((image.height, image.width), bool)
        x0, y0, x1, y1 = (max(0, round(v)) for v in box)
        mask[y0:y1, x0:x1] = True
        return mask


class Row(NamedTuple):
    """One answer. `intersection` and `union` are mask areas in pixels, 0 without a segmenter."""

    image_id: Id
    query: str
    box: Box | None
    iou: float
    valid: bool
    intersection: int = 0
    union: int = 0


class GroundingEvaluator(Evaluator[Row]):
    """Logs `val/mIoU`, `val/Acc@0.5` and `val/valid`, and with a segmenter `val/gIoU` and `val/cIoU`.

    gIoU is the mean over prompts of the masks' intersection / union, and cIoU is the sum of intersections / the sum of
    unions. The true mask is the union of the target regions, `metadata["polygons"]`. Regions in `metadata["ignore"]`
    neither raise nor lower a score. Regions are polygons or RLEs. An unreadable answer counts as an empty mask.
    """

    def __init__(self, segmenter: Segmenter | None = None) -> None:
        """Set the segmenter.

        Args:
            segmenter: model that converts boxes to masks; default: none, compare boxes only.
        """
        super().__init__()
        self.segmenter = segmenter

    def row(self, answer: Answer, sample: Sample) -> Row:
        assert isinstance(sample.target, tuple)
        box = answer.value[0].box if isinstance(answer.value, tuple) and answer.value else None
        iou = 0.0 if box is None else float(iou_matrix([box], [sample.target[0].box])[0, 0])
        row = Row(sample.image_id, sample.query, box, iou, answer.valid)
        if self.segmenter is None:
            return row
        truth, ignore = true_masks(sample)
        found = np.zeros_like(truth) if box is None else self.segmenter.segment(sample.image, box)
        return row._replace(
            intersection=int((found & truth & ~ignore).sum()), union=int(((found | truth) & ~ignore).sum())
        )

    def image_of(self, row: Row, index: int) -> Id:
        return row.image_id

    def scores(self, rows: list[Row]) -> dict[str, float]:
        found = {
            "mIoU": sum(row.iou for row in rows) / len(rows),
            f"Acc@{ACCURACY_IOU}": sum(row.iou >= ACCURACY_IOU for row in rows) / len(rows),
            "valid": sum(row.valid for row in rows) / len(rows),
        }
        if self.segmenter is not None:
            found["gIoU"] = sum(row.intersection / row.union if row.union else 1.0 for row in rows) / len(rows)
            found["cIoU"] = sum(row.intersection for row in rows) / max(sum(row.union for row in rows), 1)
        return found

    def quality(self, row: Row) -> float:
        return row.iou

    def write(self, folder: Path, rows: list[Row]) -> None:
        write_json(folder / "grounding.json", [row._asdict() for row in rows])


def true_masks(sample: Sample) -> tuple[Mask, Mask]:
    """Return the mask of the target and the mask of the regions to ignore, each (height, width).

    Raises:
        ConfigurationError: the data has no polygons.
    """
    if "polygons" not in sample.metadata:
        raise ConfigurationError(
            "trainer.callbacks: GroundingEvaluator.segmenter: the data has no polygons; expected e.g. ReasonSegData"
        )
    return _merged(sample.metadata["polygons"], sample.size), _merged(sample.metadata.get("ignore", []), sample.size)


def _merged(shapes: list[Any], size: tuple[int, int]) -> Mask:
    """Return the union of polygons [x0, y0, x1, y1, ...] and RLEs as a mask."""
    from hotcoco import mask

    width, height = size
    merged = np.zeros((height, width), bool)
    for shape in shapes:
        rle = mask.frPyObjects(shape if isinstance(shape, dict) else [shape], height, width)
        merged |= mask.decode(rle if isinstance(rle, dict) else mask.merge(rle)).astype(bool)
    return merged
