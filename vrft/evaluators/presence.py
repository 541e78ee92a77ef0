"""Evaluate which categories are named in images, and write them as a map for `data.val_queries`."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from vrft.evaluators.base import Evaluator
from vrft.tasks.presence import names_of
from vrft.types import Answer, Id, Sample
from vrft.utils.files import write_json


class Row(NamedTuple):
    """One image, with the named and the present categories."""

    image_id: Id
    named: tuple[str, ...]
    true: tuple[str, ...]
    valid: bool


class PresenceEvaluator(Evaluator[Row]):
    """Logs `val/presence/precision` and `val/presence/recall` over pairs of image and category, and `val/valid`.

    Writes `category_map.json`, the named categories by image id, as input for `data.val_queries`. The recall is an
    upper bound on the share of present categories that a detector finds if it is asked for the categories of this map.
    """

    def row(self, answer: Answer, sample: Sample) -> Row:
        named = () if answer.value is None else names_of(answer.value)
        return Row(sample.image_id, tuple(named), tuple(names_of(sample.target)), answer.valid)

    def scores(self, rows: list[Row]) -> dict[str, float]:
        right = sum(len({*row.named} & {*row.true}) for row in rows)
        counts = {"precision": sum(len(row.named) for row in rows), "recall": sum(len(row.true) for row in rows)}
        shares = {f"presence/{name}": right / count for name, count in counts.items() if count}
        return shares | {"valid": sum(row.valid for row in rows) / len(rows)}

    def image_of(self, row: Row, index: int) -> Id:
        return row.image_id

    def quality(self, row: Row) -> float:
        """Return the intersection over union of named and present categories."""
        union = {*row.named} | {*row.true}
        return len({*row.named} & {*row.true}) / len(union) if union else 1.0

    def write(self, folder: Path, rows: list[Row]) -> None:
        named = {str(row.image_id): row.named for row in rows}
        if len(named) < len({row.image_id for row in rows}):
            self.warn(
                "category_map.json: some image ids are equal as text, e.g. 1 and '1'; the map has only one of them"
            )
        write_json(folder / "category_map.json", named)
