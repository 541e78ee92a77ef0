"""Top-1 accuracy of class names."""

from __future__ import annotations

from typing import NamedTuple

from vrft.answers import normalise_label
from vrft.evaluators.base import Evaluator
from vrft.types import Answer, Sample


class Row(NamedTuple):
    """One answer."""

    right: bool
    valid: bool


class AccuracyEvaluator(Evaluator[Row]):
    """Logs `val/accuracy` and `val/valid`; names are compared as in `Accuracy`, and what can't be read is wrong."""

    def row(self, answer: Answer, sample: Sample) -> Row:
        assert isinstance(sample.target, str)
        named = normalise_label(answer.value) if isinstance(answer.value, str) else None
        return Row(named == normalise_label(sample.target), answer.valid)

    def scores(self, rows: list[Row]) -> dict[str, float]:
        return {
            "accuracy": sum(row.right for row in rows) / len(rows),
            "valid": sum(row.valid for row in rows) / len(rows),
        }
