"""`python -m vrft score`: compute the rewards of the completions in a file."""

from __future__ import annotations

import importlib
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vrft.cli.parser import Parser
from vrft.errors import ConfigurationError
from vrft.utils.display import counted, visible
from vrft.utils.regular_files import read_regular

if TYPE_CHECKING:
    from vrft.boxes import Coordinates
    from vrft.rewards import Reward
    from vrft.tasks import Task
    from vrft.types import Answer, Frame, Id, Target

TASKS = {
    "detection": "DetectionTask",
    "multi_category_detection": "MultiCategoryDetectionTask",
    "grounding": "GroundingTask",
    "classification": "ClassificationTask",
    "multiple_choice": "MultipleChoiceTask",
    "counting": "CountingTask",
}
MAX_SIDE = 1_000_000  # pixels
MAX_PROBLEMS = 5
"""Maximum number of reasons for invalid answers that the summary lists."""
BATCH = 256  # number of answers that a reward scores at once

DESCRIPTION = """\
Scores completions. FILE is the transcripts.jsonl of a run, or has a JSON object per line:
  completion   the model's answer
  solution     the right answer in the same format, <answer>[{'Position': [0, 10, 500, 1000]}]</answer>,
               <answer>No Objects</answer>, <answer>(x1,y1),(x2,y2)</answer> or <answer>label</answer>
  width        of the image in pixels, if answers are boxes
  height       of the image in pixels, if answers are boxes
  query        optional: the category, the instruction or the question
  metadata     optional: an object, for rewards of your own; multiple_choice reads its "choices"
Writes one JSON object per line to standard output, {"iou": 0.95, ...}, with unweighted scores, null if a reward does
not apply, and the means to standard error, with the reasons why answers are not valid. An answer that can't be parsed
scores 0.
"""


class Record(NamedTuple):
    """A line of the file, which takes the place of a sample."""

    image_id: Id
    query: str
    target: Target
    size: tuple[int, int]
    metadata: dict[str, Any]
    num_images: int = 1
    image_index: int | None = None


def build_parser() -> Parser:
    """Return the parser of the command."""
    parser = Parser("score", DESCRIPTION)
    parser.add_argument("--task", required=True, choices=TASKS, help="how to parse answers")
    parser.add_argument(
        "--rewards", nargs="+", metavar="NAME", help="names of the task's rewards, or class paths; default: the task's"
    )
    parser.add_argument("--input", required=True, type=Path, metavar="FILE", help="the completions, as JSON lines")
    parser.add_argument(
        "--coordinates",
        default="thousandths",
        choices=("thousandths", "pixels", "unit"),
        help="coordinates of boxes: thousandths of the image, pixels of the image, or 0..1",
    )
    parser.add_argument("--no-reasoning", action="store_true", help="the right format is <answer>...</answer> alone")
    return parser


def main(args: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    arguments = build_parser().parse_args(args)
    from vrft import tasks

    task: Task = getattr(tasks, TASKS[arguments.task])(reasoning=not arguments.no_reasoning)
    rewards = select_rewards(task, arguments.rewards)
    records, answers = read_records(arguments.input, task, arguments.coordinates)
    for reward in rewards.values():
        reward.load()
    totals: dict[str, list[float]] = {name: [] for name in rewards}
    for start in range(0, len(records), BATCH):
        part = slice(start, start + BATCH)
        scores = {name: finite(reward.bounded_scores(answers[part], records[part])) for name, reward in rewards.items()}
        for values in zip(*scores.values(), strict=True):
            print(json.dumps(dict(zip(scores, values, strict=True)), allow_nan=False))
        for name, column in scores.items():
            totals[name] += [value for value in column if value is not None]
    for line in summary(totals, answers):
        print(line, file=sys.stderr)
    return 0


def finite(scores: Sequence[float | None]) -> list[float | None]:
    """Replace scores that are not finite by None. The reward has already warned of them."""
    return [score if score is not None and math.isfinite(score) else None for score in scores]


def summary(totals: dict[str, list[float]], answers: Sequence[Answer]) -> Iterator[str]:
    """Yield lines of text with the reasons for invalid answers and the mean of each reward."""
    from vrft.answers import without_details

    yield f"{counted(len(answers), 'completion')}, {sum(answer.valid for answer in answers)} of them valid"
    kinds: dict[str, list[int]] = {}
    for number, answer in enumerate(answers):
        if answer.problem is not None:
            kinds.setdefault(without_details(answer.problem), []).append(number)
    ranked = sorted(kinds.values(), key=len, reverse=True)
    for numbers in ranked[:MAX_PROBLEMS]:
        example = answers[numbers[0]].problem or ""
        yield f"  {len(numbers)} not valid, e.g. completion {numbers[0] + 1}: {visible(example)}"
    if rest := sum(map(len, ranked[MAX_PROBLEMS:])):
        yield f"  {rest} not valid for other reasons"
    for name, values in totals.items():
        mean = f"{sum(values) / len(values):.4f}" if values else "does not apply"
        yield f"{name:<20} {mean}"


def select_rewards(task: Task, names: Sequence[str] | None) -> dict[str, Reward]:
    """Return rewards by name, for the task's default rewards, or by class path.

    Raises:
        ConfigurationError: a name is neither.
    """
    own = task.rewards()
    if names is None:
        return own
    return {name.rpartition(".")[2]: own[name] if name in own else _import_reward(name, own) for name in names}


def _import_reward(path: str, own: dict[str, Reward]) -> Reward:
    from vrft.rewards import Reward

    module, _, name = path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name) if module else None
    except (ImportError, AttributeError, TypeError) as error:
        raise ConfigurationError(f"score: --rewards: {path!r}: {error}") from error
    if not isinstance(cls, type):
        raise ConfigurationError(
            f"score: --rewards: {path!r} is not a class; score takes subclasses of vrft.rewards.Reward, or one of "
            f"{', '.join(own)}"
        )
    if not issubclass(cls, Reward):
        raise ConfigurationError(
            f"score: --rewards: {path!r} is not a reward; expected one of {', '.join(own)}, or a class path"
        )
    try:
        return cls()
    except TypeError as error:
        raise ConfigurationError(f"score: --rewards: {path!r} needs settings: {error}") from error


def read_records(path: Path, task: Task, coordinates: Coordinates) -> tuple[list[Record], list[Answer]]:
    """Return the records of a file, and their parsed completions.

    Raises:
        ConfigurationError: the file does not exist, or a line is invalid. The message names the line and the field.
    """
    try:
        text = read_regular(path).decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
        lines = text.split("\n")  # not splitlines, because texts may contain U+2028
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"score: --input: {path} can't be read: {error}") from error
    records, answers = [], []
    for number, line in enumerate(lines, 1):
        if line.strip():
            record, answer = _read_line(f"{path}: line {number}", line, task, coordinates)
            records.append(record)
            answers.append(answer)
    return records, answers


def _read_line(location: str, line: str, task: Task, coordinates: Coordinates) -> tuple[Record, Answer]:
    entry = _read_entry(location, line)
    size = _size(location, entry)
    asked = Record(0, entry.get("query", ""), "", size or (1, 1), entry.get("metadata", {}))
    frame = _frame(location, entry, asked.size, coordinates)
    target = _target(location, entry, task, asked, frame)
    if isinstance(target, tuple) and size is None:
        raise ConfigurationError(f"{location}: width and height: expected pixels, got nothing")
    record = asked._replace(target=target)
    if "solution" not in entry:  # targets in transcripts are not rounded to the coordinates of answers
        record = record._replace(target=task.scored_target(record, frame))
    return record, task.parse(entry["completion"], record, frame)


def _read_entry(location: str, line: str) -> dict[str, Any]:
    """Decode a line, and check its texts and metadata."""
    from vrft.data.files import decode_json

    try:
        entry = decode_json(line)
    except ValueError as error:
        raise ConfigurationError(f"{location}: not JSON: {error}") from error
    if not isinstance(entry, dict):
        raise ConfigurationError(f"{location}: expected an object, got {type(entry).__name__}")
    transcript = "target" in entry and "solution" not in entry
    needed = ("completion",) if transcript else ("completion", "solution")
    for key, kind in (("completion", str), ("solution", str), ("query", str), ("metadata", dict)):
        if key in needed and key not in entry:
            raise ConfigurationError(f"{location}: field {key!r} is missing")
        if not isinstance(entry.get(key, None if key in needed else kind()), kind):
            raise ConfigurationError(f"{location}: {key}: expected {kind.__name__}, got {entry.get(key)!r}")
    choices = entry.get("metadata", {}).get("choices", [])
    if not (isinstance(choices, list) and all(isinstance(choice, str) for choice in choices)):
        raise ConfigurationError(f"{location}: metadata: choices: expected a list of texts, got {choices!r}")
    return entry


def _target(location: str, entry: dict[str, Any], task: Task, asked: Record, frame: Frame) -> Target:
    """Return the target of a transcript, or parse the solution."""
    from vrft.cli.transcript_lines import read_target

    if "solution" not in entry:
        try:
            return read_target(entry["target"], task)
        except ValueError as error:
            raise ConfigurationError(f"{location}: target: {error}") from error
    target = task.read_solution(entry["solution"], asked, frame)
    if target is None:
        raise ConfigurationError(
            f"{location}: solution: can't be read as {type(task).__name__}: {entry['solution']!r:.300}; expected "
            f"<answer>{task.form.format(**task.fields(frame))}</answer>"
        )
    return target


def _frame(location: str, entry: dict[str, Any], size: tuple[int, int], coordinates: Coordinates) -> Frame:
    """Return the coordinate system of the completion, from the transcript or from `coordinates`."""
    from vrft.boxes import frame_of
    from vrft.cli.transcript_lines import read_frame

    if "frame" not in entry:
        return frame_of(coordinates, size)
    try:
        return read_frame(entry["frame"])
    except ValueError as error:
        raise ConfigurationError(f"{location}: frame: {error}") from error


def _size(location: str, entry: dict[str, Any]) -> tuple[int, int] | None:
    size: Any = entry.get("width"), entry.get("height")
    if size == (None, None) and isinstance(entry.get("size"), list) and len(entry["size"]) == 2:
        size = entry["size"][0], entry["size"][1]  # transcripts have a list
    if size == (None, None):
        return None
    for side in size:
        if not isinstance(side, int) or isinstance(side, bool) or not 0 < side <= MAX_SIDE:
            raise ConfigurationError(f"{location}: width and height: expected pixels, got {size[0]!r} and {size[1]!r}")
    return size[0], size[1]
