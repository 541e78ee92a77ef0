"""`python -m vrft score`: bad lines, files and options are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.score import DETECTION, NAME, write
from vrft.__main__ import main


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Return a function that returns the one error line of arguments refused with exit code 2."""

    def command(*arguments: str) -> str:
        assert main(["score", *arguments]) == 2
        written = capsys.readouterr()
        assert written.out == ""
        (line,) = written.err.splitlines()
        assert line.startswith("vrft: ")
        assert "Traceback" not in line
        return line

    return command


def without(entry: dict[str, object], *fields: str) -> dict[str, object]:
    return {name: value for name, value in entry.items() if name not in fields}


@pytest.mark.parametrize(
    ("task", "entry", "named"),
    [
        pytest.param("detection", "{'completion': 1}", ["not JSON"], id="no-json"),
        pytest.param("detection", '{"completion": "a"', ["not JSON"], id="cut-off"),
        pytest.param("detection", "[" * 100_000, ["not JSON"], id="nested-too-deeply"),
        pytest.param("detection", [1, 2], ["expected an object, got list"], id="a-list"),
        pytest.param("detection", "null", ["expected an object, got NoneType"], id="null"),
        pytest.param(
            "detection", without(DETECTION, "completion"), ["field 'completion' is missing"], id="no-completion"
        ),
        pytest.param("detection", without(DETECTION, "solution"), ["field 'solution' is missing"], id="no-solution"),
        pytest.param("detection", DETECTION | {"completion": 5}, ["completion: expected str, got 5"], id="number"),
        pytest.param("detection", DETECTION | {"completion": None}, ["completion: expected str, got None"], id="none"),
        pytest.param("detection", DETECTION | {"solution": []}, ["solution: expected str, got []"], id="list"),
        pytest.param("detection", DETECTION | {"query": 5}, ["query: expected str, got 5"], id="query-number"),
        pytest.param("detection", DETECTION | {"query": None}, ["query: expected str, got None"], id="query-null"),
        pytest.param("detection", DETECTION | {"metadata": "x"}, ["metadata: expected dict, got 'x'"], id="metadata"),
        pytest.param("detection", without(DETECTION, "width"), ["width and height", "None and 480"], id="no-width"),
        pytest.param("detection", without(DETECTION, "height"), ["width and height", "640 and None"], id="no-height"),
        pytest.param("detection", without(DETECTION, "width", "height"), ["width and height"], id="no-size"),
        pytest.param("detection", DETECTION | {"width": None, "height": None}, ["width and height"], id="size-null"),
        pytest.param(
            "detection",
            without(DETECTION, "width", "height") | {"solution": "No Objects"},
            ["width and height"],
            id="no-size-and-no-objects",
        ),
        pytest.param("detection", DETECTION | {"width": 0}, ["width and height", "got 0 and 480"], id="width-0"),
        pytest.param("detection", DETECTION | {"width": -640}, ["width and height"], id="width-negative"),
        pytest.param("detection", DETECTION | {"width": 10**400}, ["width and height"], id="width-beyond-floats"),
        pytest.param("detection", DETECTION | {"metadata": {"choices": 5}}, ["choices", "got 5"], id="choices-number"),
        pytest.param("detection", DETECTION | {"metadata": {"choices": [1]}}, ["choices", "[1]"], id="choices-numbers"),
        pytest.param("detection", DETECTION | {"width": "640"}, ["width and height", "'640'"], id="width-a-string"),
        pytest.param("detection", DETECTION | {"width": 640.5}, ["width and height", "640.5"], id="width-a-fraction"),
        pytest.param("detection", DETECTION | {"height": True}, ["width and height", "True"], id="height-a-boolean"),
        pytest.param("detection", DETECTION | {"solution": ""}, ["solution: can't be read"], id="empty-solution"),
        pytest.param("detection", DETECTION | {"solution": "cat"}, ["solution: can't be read", "'cat'"], id="solution"),
        pytest.param(
            "detection",
            DETECTION | {"solution": "[{'Position':\n[0, 10, 500, 1001]}]"},
            ["solution: can't be read", "1001"],
            id="solution-out-of-frame-on-two-lines",
        ),
        pytest.param(
            "grounding", DETECTION | {"solution": "No Objects"}, ["solution: can't be read as GroundingTask"], id="none"
        ),
        pytest.param(
            "multi_category_detection",
            DETECTION,
            ["solution: can't be read as MultiCategory"],
            id="solution-unlabelled",
        ),
        pytest.param("counting", NAME, ["solution: can't be read as CountingTask"], id="count-in-letters"),
        pytest.param("multiple_choice", NAME, ["solution: can't be read as MultipleChoiceTask"], id="choice"),
    ],
)
def test_a_bad_line_is_named(refused, tmp_path: Path, task: str, entry: object, named: list[str]) -> None:
    good = {"counting": "3", "multiple_choice": "B", "grounding": "(0,0),(9,9)"}.get(task)
    first = DETECTION | ({"solution": good} if good else {})
    if task == "multi_category_detection":
        first |= {"solution": "[{'Label': 'cat', 'Position': [0, 10, 500, 1000]}]"}
    path = write(tmp_path, first, "", entry)
    line = refused("--task", task, "--input", path)
    assert f"{path}: line 3: " in line
    assert [text for text in named if text not in line] == []


def test_a_missing_file_is_named(refused, tmp_path: Path) -> None:
    line = refused("--task", "detection", "--input", str(tmp_path / "no.jsonl"))
    assert "--input" in line
    assert "no.jsonl" in line


def test_a_folder_is_refused_as_a_file(refused, tmp_path: Path) -> None:
    assert str(tmp_path) in refused("--task", "detection", "--input", str(tmp_path))


def test_a_file_that_is_not_text_is_named(refused, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"\xff\xfe\x00{")
    assert "a.bin can't be read" in refused("--task", "detection", "--input", str(tmp_path / "a.bin"))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        pytest.param(["--task", "segmentation"], ["--task", "'segmentation'", "detection"], id="task"),
        pytest.param([], ["--task"], id="no-task"),
        pytest.param(["--task", "detection", "--coordinates", "inches"], ["--coordinates", "'inches'"], id="inches"),
        pytest.param(
            ["--task", "detection", "--reward", "iou", "--x"],
            ["--x", "did you mean 'rewards'?"],
            id="unknown-option",
        ),
        pytest.param(["--task", "detection", "--no-reason"], ["did you mean 'no-reasoning'?"], id="hyphen"),
        pytest.param(["--task", "detection", "--rewards", "accuracy"], ["'accuracy'", "iou, confidence"], id="name"),
        pytest.param(["--task", "detection", "--rewards", "no_such.Thing"], ["no_such"], id="module"),
        pytest.param(["--task", "detection", "--rewards", "vrft.rewards.Thing"], ["Thing"], id="class"),
        pytest.param(["--task", "detection", "--rewards", "json.JSONDecoder"], ["is not a reward"], id="no-reward"),
        pytest.param(
            ["--task", "detection", "--rewards", "json.loads"],
            ["is not a class; score takes subclasses"],
            id="function",
        ),
        pytest.param(["--task", "detection", "--rewards", "..x"], ["..x"], id="dots"),
        pytest.param(["--task", "detection", "--rewards", "vrft.rewards.Reward"], ["abstract"], id="abstract"),
        pytest.param(
            ["--task", "detection", "--rewards", "vrft.rewards.RewardModel"], ["checkpoint"], id="needs-settings"
        ),
    ],
)
def test_wrong_options_are_named(refused, tmp_path: Path, options: list[str], named: list[str]) -> None:
    line = refused("--input", write(tmp_path, DETECTION), *options)
    assert [text for text in named if text not in line] == []


def test_a_missing_file_argument_is_named(refused) -> None:
    assert "--input" in refused("--task", "detection")
