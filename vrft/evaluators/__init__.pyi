"""Evaluators: callbacks that score held-out answers by the rules of the benchmarks."""

from vrft.evaluators.accuracy import AccuracyEvaluator
from vrft.evaluators.base import Evaluator
from vrft.evaluators.coco import CocoEvaluator
from vrft.evaluators.grounding import BoxSegmenter, GroundingEvaluator, Segmenter
from vrft.evaluators.lvis import LvisEvaluator
from vrft.evaluators.mazes import MazeEvaluator
from vrft.evaluators.presence import PresenceEvaluator
from vrft.evaluators.segmenter import SamSegmenter

__all__ = [
    "AccuracyEvaluator",
    "BoxSegmenter",
    "CocoEvaluator",
    "Evaluator",
    "GroundingEvaluator",
    "LvisEvaluator",
    "MazeEvaluator",
    "PresenceEvaluator",
    "SamSegmenter",
    "Segmenter",
]
