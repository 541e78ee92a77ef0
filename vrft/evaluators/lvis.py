"""Evaluate average precision of boxes under LVIS's rules."""

from __future__ import annotations

from vrft.evaluators.average_precision import Format
from vrft.evaluators.coco import CocoEvaluator


class LvisEvaluator(CocoEvaluator):
    """Logs LVIS's thirteen numbers as `val/lvis/AP` and so on, under its federated rules; see `CocoEvaluator`.

    Boxes of categories that were not annotated in their image are dropped, unmatched boxes of categories that were not
    annotated exhaustively are ignored, and at most 300 boxes per image count, over all categories.
    """

    format: Format = "lvis"
