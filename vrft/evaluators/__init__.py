"""Evaluators: callbacks that score held-out answers as the benchmarks do."""

from vrft.evaluators.accuracy import AccuracyEvaluator
from vrft.evaluators.base import Evaluator
from vrft.evaluators.coco import CocoEvaluator, LvisEvaluator
from vrft.evaluators.grounding import BoxSegmenter, GroundingEvaluator, Segmenter
from vrft.evaluators.presence import PresenceEvaluator

__all__ = [
    "AccuracyEvaluator",
    "BoxSegmenter",
    "CocoEvaluator",
    "Evaluator",
    "GroundingEvaluator",
    "LvisEvaluator",
    "PresenceEvaluator",
    "Segmenter",
]
