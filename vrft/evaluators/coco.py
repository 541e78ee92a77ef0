"""COCO average precision of boxes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vrft.boxes import iou_matrix, match_by_confidence
from vrft.data.splits import Categories, category_names
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

    Average precision is over the images of the file that were asked about, by hotcoco, which agrees with pycocotools.
    mIoU is the mean over prompts of the matched IoU (above 0, by falling confidence) / max(true, predicted boxes). An
    answer that can't be read has no boxes.
    """

    def __init__(self, annotations: str, categories: Categories = None) -> None:
        """Names the truth.

        Args:
            annotations: the COCO instances file that the held-out samples come from.
            categories: names of the categories to average over, those that were asked for, or a list of
                `vrft.data.splits`; default: all.
        """
        super().__init__()
        self.annotations = Path(annotations)
        self.categories = category_names(categories, "trainer.callbacks: CocoEvaluator.categories")

    def row(self, answer: Answer, sample: Sample) -> Row:
        assert isinstance(sample.target, tuple)
        detections = answer.value if isinstance(answer.value, tuple) else ()
        scores = [1.0 if d.score is None else d.score for d in detections]
        overlaps = iou_matrix([d.box for d in detections], [true.box for true in sample.target])
        pairs = match_by_confidence(overlaps, scores, threshold=0.0)
        slots = max(len(detections), len(sample.target))
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
        """Return mAP and AP50: the means over categories that have a true box; 0 if there is none."""
        import hotcoco

        content = json.loads(self.annotations.read_text())
        ids = {category["name"]: category["id"] for category in content["categories"]}
        known = {image["id"] for image in content["images"]}
        if unknown := sorted({row.image_id for row in rows} - known):
            raise ConfigurationError(
                f"trainer.callbacks: CocoEvaluator.annotations: {self.annotations} has no image {unknown[0]}; expected "
                "the same file as data.val_annotations"
            )
        asked = {row.image_id for row in rows}
        content["images"] = [image for image in content["images"] if image["id"] in asked]
        content["annotations"] = [true for true in content["annotations"] if true["image_id"] in asked]
        results = [
            (row.image_id, x0, y0, x1 - x0, y1 - y0, 1.0 if score is None else score, ids[label])
            for row in rows
            for (x0, y0, x1, y1), label, score in row.detections
            if label in ids
        ]
        truth = hotcoco.COCO(content)
        found = truth.load_res(np.asarray(results, np.float64).reshape(-1, 7))
        evaluation = hotcoco.COCOeval(truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        assert evaluation.eval is not None
        wanted = set(ids.values()) if self.categories is None else {ids[name] for name in self.categories}
        chosen = [k for k, category in enumerate(sorted(ids.values())) if category in wanted]
        precision = evaluation.eval["precision"][:, :, chosen, 0, -1]  # (IoU, recall, category), of all areas
        defined = precision[:, :, (precision > -1).any((0, 1))]  # -1: no true box of the category
        return (float(defined.mean()), float(defined[0].mean())) if defined.size else (0.0, 0.0)
