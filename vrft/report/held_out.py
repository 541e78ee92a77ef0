"""Which held-out answers are worth a look: those that went worst, that gained and that lost most, and a fair sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vrft.report.lines import HeldOut, read_lines
from vrft.run_dir import ANSWERS

MOST = 12
"""Images of each kind."""

Answers = Mapping[int, HeldOut]
"""By sample."""


def choose(first: Answers, last: Answers) -> dict[str, list[int]]:
    """Samples to look at, by why, each of another image; the fair sample is the same in every evaluation.

    Args:
        first: of the first evaluation.
        last: of another one.
    """
    gains = {sample: gain for sample in last if sample in first and (gain := _gain(first[sample], last[sample]))}
    scores = {sample: answer.score for sample, answer in last.items() if answer.score is not None}
    order = sorted(last)
    step = max(1, math.ceil(len(order) / MOST))
    return {
        "improved": _best(last, [s for s in gains if gains[s] > 0], lambda sample: -gains[sample]),
        "worsened": _best(last, [s for s in gains if gains[s] < 0], lambda sample: gains[sample]),
        "worst": _best(last, [*scores], lambda sample: scores[sample]),
        "sample": order[::step],
    }


def _gain(first: HeldOut, last: HeldOut) -> float:
    return 0.0 if first.score is None or last.score is None else last.score - first.score


def _best(answers: Answers, samples: list[int], key: Callable[[int], float]) -> list[int]:
    chosen: dict[int, int] = {}
    for sample in sorted(samples, key=lambda sample: (key(sample), sample)):
        chosen.setdefault(answers[sample].image_id, sample)
    return [*chosen.values()][:MOST]


def read_answers(folder: Path, problems: list[str]) -> dict[int, HeldOut]:
    """The answers of an evaluation."""
    return {answer.sample: answer for answer in read_lines(folder / ANSWERS, HeldOut, problems)}


def read_pairs(folders: list[Path], problems: list[str]) -> dict[str, Any]:
    """Answers that are worth a look, with that of the run's first evaluation beside each.

    Args:
        folders: of evaluations, in their order.
        problems: gets what can't be read.

    Returns:
        `answers`, and `lists` of positions among them by why they are worth a look.
    """
    with_answers = [folder for folder in folders if (folder / ANSWERS).exists()]
    if not with_answers:
        return {"answers": [], "lists": {}}
    alone = len(with_answers) == 1
    last = read_answers(with_answers[-1], problems)
    first = last if alone else read_answers(with_answers[0], problems)
    chosen = choose(first, last)
    samples = sorted({sample for some in chosen.values() for sample in some})
    place = {sample: position for position, sample in enumerate(samples)}
    return {
        "answers": [_pair(None if alone else first.get(sample), last[sample]) for sample in samples],
        "lists": {why: [place[sample] for sample in some] for why, some in chosen.items()},
    }


def _pair(first: HeldOut | None, last: HeldOut) -> dict[str, Any]:
    return {
        "sample": last.sample,
        "image_id": last.image_id,
        "query": last.query,
        "target": last.target,
        "image": last.image or (first and first.image),
        "size": last.size,
        "first": None if first is None else _answer(first),
        "last": _answer(last),
    }


def _answer(line: HeldOut) -> dict[str, Any]:
    names = ("completion", "reasoning", "valid", "answer", "score", "reward")
    return {name: getattr(line, name) for name in names}
