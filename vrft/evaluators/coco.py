"""COCO average precision of boxes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vrft.boxes import match_by_confidence
from vrft.errors import ConfigurationError
from vrft.evaluators.base import Evaluator
from vrft.types import Answer, Detection, Sample


class Row(NamedTuple):
    """One answer about one category of one image."""

    image_id: int
    detections: tuple[Detection, ...]
    iou: float
    valid: bool


class CocoEvaluator(Evaluator[Row]):
    """Logs `val/mAP`, `val/AP50`, `val/mIoU` and `val/valid`.

    Average precision is over all images and categories of the file, by hotcoco, which agrees with pycocotools. mIoU is
    the mean over prompts of the matched IoU (above 0, by falling confidence) / max(true, predicted boxes). An answer
    that can't be read has no boxes.
    """

    def __init__(self, annotations: str) -> None:
        """`annotations`: the COCO instances file that the held-out samples come from."""
        super().__init__()
        self.annotations = Path(annotations)

    def row(self, answer: Answer, sample: Sample) -> Row:
        assert isinstance(sample.target, tuple)
        detections = answer.value if isinstance(answer.value, tuple) else ()
        boxes, scores = [d.box for d in detections], [d.score for d in detections]
        pairs = match_by_confidence(boxes, scores, [true.box for true in sample.target], threshold=0.0)
        slots = max(len(boxes), len(sample.target))
        iou = sum(value for _, _, value in pairs) / slots if slots else 1.0
        return Row(sample.image_id, detections, iou, answer.valid)

    def scores(self, rows: list[Row]) -> dict[str, float]:
        mean_ap, ap50 = self.average_precision(rows)
        return {
            "mAP": mean_ap,
            "AP50": ap50,
            "mIoU": sum(row.iou for row in rows) / len(rows),
            "valid": sum(row.valid for row in rows) / len(rows),
        }

    def average_precision(self, rows: list[Row]) -> tuple[float, float]:
        """MAP and AP50 of all images of the annotation file."""
        import hotcoco

        content = json.loads(self.annotations.read_text())
        ids = {category["name"]: category["id"] for category in content["categories"]}
        known = {image["id"] for image in content["images"]}
        if unknown := sorted({row.image_id for row in rows} - known):
            raise ConfigurationError(
                f"trainer.callbacks: CocoEvaluator.annotations: {self.annotations} has no image {unknown[0]}; expected "
                "the same file as data.val_annotations"
            )
        results = [
            (row.image_id, x0, y0, x1 - x0, y1 - y0, score, ids[label])
            for row in rows
            for (x0, y0, x1, y1), label, score in row.detections
        ]
        truth = hotcoco.COCO(content)
        found = truth.load_res(np.asarray(results, np.float64).reshape(-1, 7))
        evaluation = hotcoco.COCOeval(truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summary_lines()  # fills `stats`
        return float(evaluation.stats[0]), float(evaluation.stats[1])
