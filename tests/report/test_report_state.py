"""What the report says about a running, stopped or killed run, about chance, and about prompts and problems."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.finished import Finished
from tests.helpers.run_folders import HOSTILE, completion, held_out, report, write_lines, write_run
from vrft.report.progress import Progress, describe
from vrft.report.texts import MAX_PROMPT

NOW = 1_800_000_000.0


def state(doing: str = "training", ended: bool = False, **more: Any) -> tuple[str, str]:
    content: dict[str, Any] = {"step": 30, "rollouts": 30, "seconds": 600, "written": NOW - 20, "max_steps": 120}
    found = describe(Progress(doing=doing, **content | more), ended, NOW)
    return found["state"], found["notice"] or ""


@pytest.mark.parametrize(
    ("content", "expected", "notice"),
    [
        ({"seconds_to_go": 1800}, "training, step 30 of 120", "10 min of training so far, about 30 min to go."),
        ({}, "training, step 30 of 120", "10 min of training so far. The last step was written at 2027-01-1"),
        ({"max_steps": None}, "training, step 30", "20 s before this report"),
        ({"doing": "evaluation"}, "evaluating, step 30 of 120", "still evaluating"),
        (
            {"written": NOW - 7200},
            "silent since step 30 of 120",
            "so the run has probably been killed.",
        ),
        ({"written": NOW - 7200, "seconds": 30 * 1000}, "training, step 30 of 120", "2 h 0 min before"),  # slow steps
        ({"written": NOW + 9e8}, "training, step 30 of 120", "0 s before this report"),  # another clock
        ({"doing": "stopped"}, "stopped at step 30 of 120", "The run was stopped at step 30 of 120."),
        ({"doing": "failed", "reason": "OutOfMemoryError"}, "failed at step 30 of 120", "by OutOfMemoryError"),
        ({"ended": True}, "finished", ""),
    ],
)
def test_the_state_of_a_run_in_words(content: dict[str, Any], expected: str, notice: str) -> None:
    found = state(**content)
    assert found[0] == expected
    assert notice in found[1]


def test_a_finished_run_that_was_resumed_is_running(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "summary.json").write_text(json.dumps({"rollouts": 40}))
    progress = Progress("training", 40, 40, 9.0, time.time() - 60).as_dict()
    (run / "progress.json").write_text(json.dumps(progress))
    assert report(run)[1]["state"]["state"] == "finished"
    os.utime(run / "summary.json", (time.time() - 600,) * 2)
    assert report(run)[1]["state"]["state"] == "training, step 40"
    assert report(run)[1]["state"]["resume"] is None  # there is no checkpoint
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "last.ckpt").touch()
    command = f"python -m vrft fit --config {run}/config.yaml --ckpt_path last"
    assert report(run)[1]["state"]["resume"] == command
    (run / "progress.json").write_text('{"step": -1}')
    _, data = report(run)
    assert data["problems"] == ["progress.json can't be read"]


def test_fit_leaves_prompts_files_and_progress(finished: Finished, finished_run: Path) -> None:
    _, data = report(finished_run)
    assert data["state"] == {"state": "finished", "notice": None, "resume": None}
    progress = json.loads((finished_run / "progress.json").read_text())
    assert (progress["step"], progress["rollouts"], progress["max_steps"]) == (3, 3, 3)
    assert progress["seconds"] > 0
    for entry in [*data["groups"], *data["held_out"]["answers"]]:
        assert Path(entry["file"]).is_file()
        question, prompt = data["prompts"][entry["question"]], data["prompts"][entry["prompt"]]
        assert question == f"Detect {entry['query']}"
        assert prompt.startswith("<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Detect")
    answers = [answer for group in data["groups"] for answer in group["answers"]]
    assert all((answer["problem"] is None) == answer["valid"] for answer in answers)
    assert data["held_out"]["images"] == 6
    assert all(score["tuned_interval"] is None for score in data["scores"])  # six images are too few


def resampled(run: Path, step: int, gain: float, digest: str = "x") -> None:
    values = [0.3 + gain + 0.001 * i for i in range(200)]
    content = {"images": 20, "digest": digest, "scores": {"coco/AP": values, "mIoU": [None] * 150 + values[:50]}}
    (run / "evaluation" / f"val-{step}" / "resampled_CocoEvaluator.json").write_text(json.dumps(content))


def test_scores_have_intervals_and_paired_changes(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    resampled(run, 0, 0.0)
    resampled(run, 40, 0.1)
    scores = {score["name"]: score for score in report(run)[1]["scores"]}
    assert scores["mAP"]["base_interval"] == pytest.approx([0.305, 0.494])  # without 2.5 % on either side
    assert scores["mAP"]["tuned_interval"] == pytest.approx([0.405, 0.594])
    assert scores["mAP"]["change_interval"] == pytest.approx([0.1, 0.1])  # each sample gains as much
    assert scores["reward"]["change_interval"] == [0, 0]
    resampled(run, 40, 0.1, digest="other images")
    scores = {score["name"]: score for score in report(run)[1]["scores"]}
    assert scores["mAP"]["tuned_interval"] is not None
    assert scores["mAP"]["change_interval"] is None
    (run / "evaluation" / "val-40" / "resampled_CocoEvaluator.json").write_text("{")
    assert report(run)[1]["problems"] == ["val-40/resampled_CocoEvaluator.json can't be read"]


def test_a_warning_of_several_evaluations_is_shown_once(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    for step in (0, 20, 40):
        (run / "evaluation" / f"val-{step}").mkdir(exist_ok=True)
        (run / "evaluation" / f"val-{step}" / "warnings_CocoEvaluator.json").write_text('["few boxes"]')
    shown = [entry["kind"] for entry in report(run)[1]["warnings"] if entry["text"] == "few boxes"]
    assert shown == ["evaluations at steps 0 to 40"]


def test_long_and_equal_texts_keep_the_page_small(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "evaluation" / "val-0").mkdir(parents=True)
    long, words = HOSTILE + "x" * 100_000, {"file": "/" + "d/" * 2000 + HOSTILE, "problem": HOSTILE, "valid": False}
    lines = [
        completion(1 + n, n, g, completion=long, reasoning=long, question=long, prompt=long, answer=None, **words)
        for n in range(6)
        for g in range(8)
    ]
    write_lines(run / "transcripts.jsonl", lines)
    write_lines(
        run / "evaluation" / "val-0" / "answers.jsonl",
        [held_out(n, 0.5, prompt=long if n % 100 == 0 else None, **words) for n in range(5000)],
    )
    start = time.process_time()
    page, data = report(run)
    assert time.process_time() - start < 20  # 2 s on an idle machine
    assert len(data["prompts"]) == 1
    assert data["prompts"][0].startswith(HOSTILE)
    assert len(data["prompts"][0]) < MAX_PROMPT + 50
    assert len(page) < 15e6
    assert data["held_out"]["images"] == 5000


def test_classes_have_their_number_of_images(tmp_path: Path) -> None:
    (tmp_path / "evaluation" / "val-0").mkdir(parents=True)
    table = tmp_path / "evaluation" / "val-0" / "accuracy_per_class.csv"
    table.write_text("class,images,accuracy\nlily,1,0.0\nrose,30,0.5\n")
    _, data = report(tmp_path)
    assert [(row["name"], row["images"], row["tuned"]) for row in data["categories"]["rows"]] == [
        ("lily", 1, 0.0),
        ("rose", 30, 0.5),
    ]
