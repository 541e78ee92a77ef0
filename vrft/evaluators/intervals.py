"""Compare two models on the same images, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from rich.markup import escape
from rich.table import Table

from vrft.evaluators.base import Evaluator, Row
from vrft.evaluators.resampling import MIN_IMAGES, rows_by_image
from vrft.utils.display import visible
from vrft.utils.intervals import CONFIDENCE_LEVEL, Interval, bootstrap_draws, interval, plain


class Comparison(NamedTuple):
    """A score of two models on the same images, and the difference."""

    before: Interval
    after: Interval
    difference: Interval
    images: int
    """Number of images that the score depends on, e.g. those with small objects."""
    compared: int
    """Number of all images."""

    @property
    def intervals(self) -> tuple[Interval, Interval, Interval]:
        """Both scores and their difference."""
        return self.before, self.after, self.difference


def compare(
    evaluator: Evaluator[Row], before: Sequence[Row], after: Sequence[Row], resamples: int, seed: int
) -> dict[str, Comparison]:
    """Compare two models by a paired bootstrap (Efron 1979): both are scored on the same resampled images.

    Images are resampled with all their questions, because questions about one image are not independent.

    Args:
        evaluator: evaluator that computes the scores.
        before: rows of the first model.
        after: rows of the second model, for the same samples.
        resamples: number of bootstrap resamples.
        seed: seed of the resampling.
    """
    images = [rows_by_image(rows, evaluator.image_of) for rows in (before, after)]
    keys = [key for key in images[0] if key in images[1]]
    draws = bootstrap_draws(len(keys), resamples, seed)
    full = [evaluator.scores_of([rows[key] for key in keys]) for rows in images]
    sampled = [[evaluator.scores_of([rows[keys[i]] for i in draw]) for draw in draws] for rows in images]
    counts, found = evaluator.images_of_scores(keys), {}
    for name in full[0].keys() & full[1].keys():
        pairs = [(a[name], b[name]) for a, b in zip(*sampled, strict=True) if name in a and name in b]
        found[name] = Comparison(
            interval(full[0][name], [a for a, _ in pairs]),
            interval(full[1][name], [b for _, b in pairs]),
            interval(full[1][name] - full[0][name], [b - a for a, b in pairs]),
            counts.get(name, len(keys)),
            len(keys),
        )
    return {name: found[name] for name in full[0] if name in found}


def table(found: dict[str, Comparison], names: tuple[str, str], images: str) -> Table:
    """Return the comparison as a table. `images` describes the images by number and kind."""
    few = any(score.images < MIN_IMAGES for score in found.values())
    drawn = Table(
        title=f"{images}, {CONFIDENCE_LEVEL:.0%} intervals over images",
        caption=f"-: fewer than {MIN_IMAGES} images decide on the score, too few for an interval" if few else None,
    )
    for column in ("", *(escape(visible(name)) for name in names), "difference"):
        drawn.add_column(column, justify="right" if column else "left", no_wrap=True)
    for name, score in found.items():
        if score.images < MIN_IMAGES:
            drawn.add_row(name, *(f"{plain(each.value)} -" for each in score.intervals))
        else:
            drawn.add_row(name, *map(str, score.intervals))
    return drawn


def as_json(found: dict[str, Comparison], names: tuple[str, str]) -> dict[str, Any]:
    """Return the comparison as plain values. Bounds of intervals over too few images are null."""
    keys = (*names, "difference")
    return {
        name: {
            key: each._asdict() | ({"low": None, "high": None} if score.images < MIN_IMAGES else {})
            for key, each in zip(keys, score.intervals, strict=True)
        }
        | {"images": score.images}
        for name, score in found.items()
    }
