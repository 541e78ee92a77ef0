"""Choose the held-out answers to show: the worst, the most improved, the most worsened, and an even sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vrft.report.lines import HeldOut, read_lines
from vrft.report.texts import Prompts, cut
from vrft.run_dir import ANSWERS

MAX_IMAGES = 12
"""Maximum number of images per list."""

MAX_ANSWER = 50_000
"""Maximum number of characters of a held-out completion in a report."""

Answers = Mapping[int, HeldOut]
"""Answers by sample index."""


def choose(first: Answers, last: Answers) -> dict[str, list[int]]:
    """Return lists of samples to show by reason, one per image. The even sample is the same for all evaluations.

    Args:
        first: answers of the first evaluation.
        last: answers of the last evaluation.
    """
    gains = {sample: gain for sample in last if sample in first and (gain := _gain(first[sample], last[sample]))}
    scores = {sample: answer.score for sample, answer in last.items() if answer.score is not None}
    order = sorted(last)
    step = max(1, math.ceil(len(order) / MAX_IMAGES))
    return {
        "improved": _best(last, [s for s in gains if gains[s] > 0], lambda sample: -gains[sample]),
        "worsened": _best(last, [s for s in gains if gains[s] < 0], lambda sample: gains[sample]),
        "worst": _best(last, [*scores], lambda sample: scores[sample]),
        "sample": order[::step],
    }


def _gain(first: HeldOut, last: HeldOut) -> float:
    return 0.0 if first.score is None or last.score is None else last.score - first.score


def _best(answers: Answers, samples: list[int], key: Callable[[int], float]) -> list[int]:
    chosen: dict[int | float | str, int] = {}
    for sample in sorted(samples, key=lambda sample: (key(sample), sample)):
        chosen.setdefault(answers[sample].image_id, sample)
    return [*chosen.values()][:MAX_IMAGES]


def read_answers(folder: Path, problems: list[str]) -> dict[int, HeldOut]:
    """Return the answers of an evaluation by sample index."""
    return {answer.sample: answer for answer in read_lines(folder / ANSWERS, HeldOut, problems)}


def read_first_and_last(folders: list[Path], problems: list[str]) -> tuple[Answers | None, Answers]:
    """Return the answers of the first and the last evaluation with answers; the first is None if both are the same.

    Args:
        folders: folders of the evaluations in order.
        problems: receives messages about unreadable files.
    """
    with_answers = [folder for folder in folders if (folder / ANSWERS).exists()]
    first = read_answers(with_answers[0], problems) if len(with_answers) > 1 else None
    return first, read_answers(with_answers[-1], problems) if with_answers else {}


def pairs(first: Answers | None, last: Answers, prompts: Prompts) -> dict[str, Any]:
    """Choose answers of the last evaluation and pair them with those of the first, if there is one.

    Returns:
        `answers`, `lists` of indices into `answers` by reason, and the number of `images` in the evaluation.
    """
    chosen = choose(last if first is None else first, last) if last else {}
    samples = sorted({sample for some in chosen.values() for sample in some})
    positions = {sample: position for position, sample in enumerate(samples)}
    earlier: Answers = {} if first is None else first
    return {
        "answers": [_pair(earlier.get(sample), last[sample], prompts) for sample in samples],
        "lists": {reason: [positions[sample] for sample in some] for reason, some in chosen.items()},
        "images": len({answer.image_id for answer in last.values()}),
    }


def _pair(first: HeldOut | None, last: HeldOut, prompts: Prompts) -> dict[str, Any]:
    shown = first if first and not last.images else last
    return {
        "sample": last.sample,
        "image_id": str(last.image_id),
        "query": last.query,
        "target": last.target,
        "image": last.image or (first and first.image),
        "images": shown.images,
        "place": shown.place,
        "size": last.size,
        "file": last.file,
        "question": prompts.position(last.question),
        "prompt": prompts.position(last.prompt),
        "first": None if first is None else _answer(first),
        "last": _answer(last),
    }


def _answer(line: HeldOut) -> dict[str, Any]:
    names = ("valid", "problem", "answer", "score", "reward")
    texts = {name: cut(getattr(line, name), MAX_ANSWER) for name in ("completion", "reasoning")}
    return texts | {name: getattr(line, name) for name in names}
