"""`python -m vrft score` on the transcripts of a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import CSV_ONLY
from tests.helpers.score import write
from vrft.__main__ import main

LINE: dict[str, Any] = {
    "completion": "<think>1</think><answer>[{'Position': [0, 0, 10, 20], 'Confidence': 0.5}]</answer>",
    "target": [[[0, 0, 20.0, 40.0], "cat", 1.0]],
    "query": "cat",
    "size": [80, 60],
    "frame": [40, 30, 0],
}


def test_the_scores_of_a_runs_transcripts_are_its_rewards(
    quick_fit: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(quick_fit(CSV_ONLY, "--transcripts.every_n_rollouts=1", "--trainer.limit_val_batches=0")) == 0
    transcripts = tmp_path / "run" / "transcripts.jsonl"
    capsys.readouterr()
    assert main(["score", "--task=detection", f"--input={transcripts}"]) == 0
    scores = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    rewards = [json.loads(line)["rewards"] for line in transcripts.read_text().splitlines()]
    assert len(scores) == 32
    assert scores == [pytest.approx(each, abs=1e-6) for each in rewards]  # rewards of a run are float32
    assert len({json.dumps(each) for each in rewards}) > 3


def test_the_coordinates_of_a_transcript_are_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", "--task=detection", "--input", write(tmp_path, LINE)]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "iou": 1.0,
        "confidence": pytest.approx((11 + 4 + 0.5 * (2 - 0.5)) / 16),  # one right box with confidence 0.5
        "format": 1.0,
    }


def test_other_tasks_have_texts_as_targets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = {"completion": "<think>x</think><answer>red</answer>", "target": "B", "query": "?", "size": [9, 9]}
    line["metadata"] = {"choices": ["blue", "red"]}
    assert main(["score", "--task=multiple_choice", "--input", write(tmp_path, line)]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == 1


@pytest.mark.parametrize(
    ("task", "changes", "said"),
    [
        ("detection", {"target": "cat"}, "target: expected a list of boxes, got 'cat'"),
        ("detection", {"target": None}, "target: expected a list of boxes, got None"),
        ("detection", {"target": [[[0, 0, 5], "cat", 1]]}, "target: expected boxes [[x0, y0, x1, y1], label, score]"),
        ("detection", {"target": [[[5, 0, 5, 9], "cat", 1]]}, "target: the box [5, 0, 5, 9] has no area"),
        ("classification", {}, "target: expected a text, got a list"),
        ("detection", {"frame": [0, 1, 0]}, "frame: expected [width, height, decimals], got [0, 1, 0]"),
        ("detection", {"frame": "x"}, "frame: expected [width, height, decimals], got 'x'"),
        ("detection", {"size": [0, 4]}, "width and height: expected pixels, got 0 and 4"),
        ("detection", {"size": None}, "width and height: expected pixels, got nothing"),
        ("detection", {"completion": None}, "completion: expected str, got None"),
    ],
)
def test_a_bad_transcript_is_named(
    task: str, changes: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", f"--task={task}", "--input", write(tmp_path, LINE, LINE | changes)]) == 2
    error = capsys.readouterr().err
    assert f"answers.jsonl: line {2 if task == 'detection' else 1}: " in error
    assert said in error
