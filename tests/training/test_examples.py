"""A run whose prompts have examples."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import Command
from vrft.__main__ import main


def test_all_prompts_of_a_rollout_begin_with_the_same_examples(quick_fit: Command, tmp_path: Path) -> None:
    more = ["--data.examples=2", "--data.batch_size=3", "--transcripts.every_n_rollouts=1"]
    assert main(quick_fit(*more)) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "transcripts.jsonl").read_text().splitlines()]
    starts: dict[int, set[str]] = {}
    for line in lines:
        assert line["prompt"].count("</answer>") == 2
        start, _, _ = line["prompt"].rpartition("</answer>")
        starts.setdefault(line["rollout"], set()).add(start)
        assert line["question"] == f"Detect {line['query']}"
    assert [len(found) for found in starts.values()] == [1, 1]
    assert starts[1] != starts[2]
    evaluation = min((tmp_path / "run" / "evaluation").glob("*/answers.jsonl"))
    held_out = [json.loads(line)["prompt"] for line in evaluation.read_text().splitlines()]
    assert {prompt.count("</answer>") for prompt in held_out if prompt} == {2}


def test_examples_by_batch_need_prompts_that_are_asked_once(
    quick_fit: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(quick_fit("--data.examples=1", "--model.difficulty={reward: iou}")) == 2
    assert "vrft: data.examples: expected 0 with model.difficulty" in capsys.readouterr().err
