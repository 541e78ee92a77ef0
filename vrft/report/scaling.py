"""Curves over the number of sampled answers, which `test --samples` writes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec

from vrft.report.lines import Count
from vrft.run_dir import INFERENCE_SCALING, RunDir
from vrft.utils.regular_files import read_regular

MAX_POINTS = 64

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Answers = Annotated[str, msgspec.Meta(pattern=r"^[1-9][0-9]{0,8}$")]
"""A number of answers, as a key in JSON has it."""

MEANINGS = {
    "pass": "one of the answers is right: the right name, or an IoU of 0.5",
    "best": "quality of the best answer, which only the truth can tell",
    "likeliest": "quality of the answer with the largest probability",
    "vote": "quality of the vote: the most common name, or the boxes that most answers have",
}
"""Descriptions of the curves, by their names."""


class Scaling(msgspec.Struct):
    """Value and bounds of the 95 % interval by number of answers, by curve."""

    questions: Count
    curves: dict[str, dict[Answers, tuple[Share, Share, Share]]]


def read_scaling(run: RunDir, problems: list[str]) -> list[dict[str, Any]]:
    """Return the curves of each test that sampled answers, by name. Unreadable ones are left out and listed."""
    found = []
    for path in sorted(run.evaluations.glob(f"test-*/{INFERENCE_SCALING}")):
        if (scaling := _read(path, problems)) is None:
            continue
        curves = [
            {"name": name, "meaning": meaning, "points": _points(scaling.curves[name])}
            for name, meaning in MEANINGS.items()
            if scaling.curves.get(name)
        ]
        found.append({"evaluation": path.parent.name, "questions": scaling.questions, "curves": curves})
    return found


def _read(path: Path, problems: list[str]) -> Scaling | None:
    try:
        return msgspec.json.decode(read_regular(path), type=Scaling)
    except (OSError, msgspec.DecodeError, RecursionError):
        problems.append(f"{path.parent.name}/{path.name} can't be read")
        return None


def _points(curve: dict[str, tuple[float, float, float]]) -> list[list[float]]:
    """Return number of answers, value and bounds, in the order of the numbers."""
    return [[int(answers), *values] for answers, values in sorted(curve.items(), key=lambda item: int(item[0]))][
        :MAX_POINTS
    ]
