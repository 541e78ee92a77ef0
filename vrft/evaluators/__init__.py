"""Evaluators: callbacks that score held-out answers as the benchmarks do."""

from vrft.evaluators.accuracy import AccuracyEvaluator
from vrft.evaluators.base import Evaluator
from vrft.evaluators.coco import CocoEvaluator

__all__ = ["AccuracyEvaluator", "CocoEvaluator", "Evaluator"]
