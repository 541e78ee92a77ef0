"""Compute intervals of held-out scores, and of their changes from the base, from bootstrap samples."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from vrft.report.held_out import Answers
from vrft.report.lines import Count, Number
from vrft.report.run_facts import SCORES, number, read_evaluation
from vrft.run_dir import RESAMPLED
from vrft.types import Id
from vrft.utils.intervals import bootstrap_draws, interval
from vrft.utils.regular_files import read_regular

RESAMPLES = 200
MIN_IMAGES = 8
MIN_SAMPLES = 100
"""Minimum number of bootstrap samples with a defined score for an interval."""

Values = Sequence[float | None]


class Resampled(msgspec.Struct):
    """Scores of bootstrap samples. Equal digests mean the same images in the same order."""

    digest: str
    images: Count
    scores: dict[str, list[Number | None]]


class Samples(NamedTuple):
    """The values of a score for bootstrap samples, and a key that identifies the samples."""

    digest: str
    values: Values


def read_resampled(folder: Path, problems: list[str]) -> dict[str, Samples]:
    """Return the resampled scores of an evaluation by name."""
    found: dict[str, Samples] = {}
    for path in sorted(folder.glob(RESAMPLED.format("*"))):
        try:
            content = msgspec.json.decode(read_regular(path), type=Resampled)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            problems.append(f"{folder.name}/{path.name} can't be read")
            continue
        for name, values in content.scores.items():
            found.setdefault(name, Samples(content.digest, values))
    return found


def resampled_rewards(*evaluations: Answers) -> list[Samples]:
    """Return, for each evaluation, the mean rewards of bootstrap samples of the images common to all evaluations."""
    sums = [_by_image(answers) for answers in evaluations]
    images = [key for key in sums[0] if all(key in each for each in sums)]
    if len(images) < MIN_IMAGES:
        return []
    draws = bootstrap_draws(len(images), RESAMPLES, seed=0)
    return [Samples("rewards", [_mean([each[images[i]] for i in draw]) for draw in draws]) for each in sums]


def _by_image(answers: Answers) -> dict[Id, tuple[float, int]]:
    """Return the sum and the number of rewards of each image."""
    rewards: dict[Id, list[float]] = defaultdict(list)
    for answer in answers.values():
        if answer.reward is not None:
            rewards[answer.image_id].append(answer.reward)
    return {key: (sum(values), len(values)) for key, values in rewards.items()}


def _mean(parts: Sequence[tuple[float, int]]) -> float:
    return sum(total for total, _ in parts) / sum(count for _, count in parts)


def with_intervals(
    scores: Sequence[Mapping[str, Any]], base: Mapping[str, Samples], tuned: Mapping[str, Samples]
) -> list[dict[str, Any]]:
    """Add to scores the bounds of their intervals, and of the interval of the change if the images are the same.

    Args:
        scores: scores as `run_facts.read_scores` returns them.
        base: resampled scores of the base.
        tuned: resampled scores of the last evaluation.
    """
    return [_with_interval(score, base, tuned) for score in scores]


def _with_interval(
    score: Mapping[str, Any], base: Mapping[str, Samples], tuned: Mapping[str, Samples]
) -> dict[str, Any]:
    names = SCORES[score["name"]]
    before, after = (next((part[name] for name in names if name in part), None) for part in (base, tuned))
    found = {
        "base_interval": before and _bounds(before.values),
        "tuned_interval": after and _bounds(after.values),
        "change_interval": None,
    }
    if before is not None and after is not None and before.digest == after.digest:
        pairs = zip(before.values, after.values, strict=False)
        found["change_interval"] = _bounds([b - a if a is not None and b is not None else None for a, b in pairs])
    return {**score, **found}


def with_best(scores: Sequence[Mapping[str, Any]], folder: Path, problems: list[str]) -> list[dict[str, Any]]:
    """Add the scores of the best checkpoint, from the folder of its evaluation, and their intervals."""
    found, samples = read_evaluation(folder), read_resampled(folder, problems)
    values = []
    for score in scores:
        some = next((samples[name] for name in SCORES[score["name"]] if name in samples), None)
        best = number(found, score["name"])
        values.append({**score, "best": best, "best_interval": None if some is None else _bounds(some.values)})
    return values


def _bounds(values: Values) -> tuple[float, float] | None:
    known = [value for value in values if value is not None]
    if len(known) < MIN_SAMPLES:
        return None
    _, low, high = interval(0.0, known)
    return low, high
