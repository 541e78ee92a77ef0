"""Read the curves over the number of sampled answers that `test --samples` writes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from vrft.report.lines import Count
from vrft.run_dir import BY, INFERENCE_SCALING, THINKING_BUDGET, RunDir
from vrft.utils.regular_files import read_regular

MAX_POINTS = 64

Kind = TypeVar("Kind")

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Answers = Annotated[str, msgspec.Meta(pattern=r"^[1-9][0-9]{0,8}$")]
"""A number of answers as a JSON key."""
Tokens = Annotated[str, msgspec.Meta(pattern=r"^(0|[1-9][0-9]{0,8})$")]
"""A number of tokens as a JSON key."""

MEANINGS = {
    "pass": "one of the answers is right: the right name, or an IoU of 0.5",
    "best": "quality of the best answer, which only the truth can tell",
    "likeliest": "quality of the answer with the largest probability",
    "vote": "quality of the vote: the most common name, or the boxes that most answers have",
}
"""Descriptions of the curves by name."""


BY_REWARD = "quality of the answer with the largest score in model.rewards.{}, which needs no ground truth"

THINKING = "quality of the answer after so many tokens of thinking, which is then cut"


class Budgets(msgspec.Struct):
    """Value and bounds of its 95 % interval, by number of thinking tokens."""

    questions: Count
    curve: dict[Tokens, tuple[Share, Share, Share]]


class Scaling(msgspec.Struct):
    """Value and bounds of its 95 % interval, by curve and number of answers."""

    questions: Count
    curves: dict[str, dict[Answers, tuple[Share, Share, Share]]]


def read_scaling(run: RunDir, problems: list[str]) -> list[dict[str, Any]]:
    """Return the curves of each test that sampled answers. Leave out unreadable files and list them in `problems`."""
    found = []
    for path in sorted(run.evaluations.glob(f"*/{INFERENCE_SCALING}")):
        if (scaling := _read(path, Scaling, problems)) is None:
            continue
        chosen = {name: BY_REWARD.format(name.removeprefix(BY)) for name in scaling.curves if name.startswith(BY)}
        curves = [
            {"name": name, "meaning": meaning, "unit": "answer", "points": _points(scaling.curves[name])}
            for name, meaning in (MEANINGS | chosen).items()
            if scaling.curves.get(name)
        ]
        found.append({"evaluation": path.parent.name, "questions": scaling.questions, "curves": curves})
    for path in sorted(run.evaluations.glob(f"*/{THINKING_BUDGET}")):
        budgets = _read(path, Budgets, problems)
        if budgets is not None and budgets.curve:
            curve = {
                "name": "thinking",
                "meaning": THINKING,
                "unit": "thinking token",
                "points": _points(budgets.curve),
            }
            found.append({"evaluation": path.parent.name, "questions": budgets.questions, "curves": [curve]})
    return found


def _read(path: Path, kind: type[Kind], problems: list[str]) -> Kind | None:
    try:
        return msgspec.json.decode(read_regular(path), type=kind)
    except (OSError, msgspec.DecodeError, RecursionError):
        problems.append(f"{path.parent.name}/{path.name} can't be read")
        return None


def _points(curve: dict[str, tuple[float, float, float]]) -> list[list[float]]:
    """Return [number of answers, value, lower bound, upper bound] of each point, sorted by number of answers."""
    return [[int(answers), *values] for answers, values in sorted(curve.items(), key=lambda item: int(item[0]))][
        :MAX_POINTS
    ]
