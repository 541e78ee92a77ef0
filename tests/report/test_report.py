"""`python -m vrft report`: the command, and the data that the page shows."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers import ROOT
from tests.helpers.finished import Finished
from tests.helpers.run_folders import completion, held_out, report, write_lines, write_run
from vrft.__main__ import main
from vrft.report.held_out import choose
from vrft.report.lines import HeldOut
from vrft.report.metrics import MAX_POINTS, read_metrics, thin
from vrft.run_dir import RunDir


def test_the_command_prints_the_reports_path_and_opens_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    run = write_run(tmp_path / "a run")
    assert main(["report", str(run), "--open"]) == 0
    assert capsys.readouterr().out == f"report: {run / 'report.html'}\n"
    assert opened == [(run / "report.html").resolve().as_uri()]
    assert not list(run.glob("*.partial"))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        pytest.param(lambda path: None, "no such folder", id="missing"),
        pytest.param(lambda path: path.mkdir(), "holds no run", id="empty-folder"),
        pytest.param(lambda path: path.write_text(""), "no such folder", id="a-file"),
    ],
)
def test_a_path_without_a_run_is_an_error_of_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Callable[[Path], None], said: str
) -> None:
    make(tmp_path / "run")
    assert main(["report", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_curves_over_sampled_answers_are_shown_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    folder = run / "evaluation" / "test-base"
    folder.mkdir(parents=True)
    curve = {"16": [0.5, 0.4, 0.6], "2": [0.3, 0.2, 0.4]}
    content = {"questions": 9, "success": 0.5, "curves": {"vote": curve, "unknown": curve}}
    (folder / "inference_scaling.json").write_text(json.dumps(content))
    _, data = report(run)
    ((shown,), name, questions) = (data["scaling"][0][key] for key in ("curves", "evaluation", "questions"))
    assert data["scaling"][1]["evaluation"] == "test-last"
    assert (name, questions, shown["name"]) == ("test-base", 9, "vote")
    assert shown["points"] == [[2, 0.3, 0.2, 0.4], [16, 0.5, 0.4, 0.6]]


def test_the_command_needs_no_torch(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    command = [sys.executable, "-X", "importtime", "-m", "vrft", "report", str(run)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    modules = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "msgspec" in modules
    assert not modules & {"torch", "lightning", "transformers", "numpy"}


def test_fit_keeps_images_and_answers_and_writes_the_report(finished: Finished, finished_run: Path) -> None:
    assert f"report: {finished.folder / 'run' / 'report.html'}\n" in finished.printed
    run = finished_run
    _, data = report(run)
    assert [len(group["answers"]) for group in data["groups"]] == [8] * 12
    assert {group["task"] for group in data["groups"]} == {"DetectionTask"}
    assert all((run / "pictures" / group["image"]).exists() for group in data["groups"])
    assert len(data["held_out"]["answers"]) > 0
    for entry in data["held_out"]["answers"]:
        assert (run / "pictures" / entry["image"]).exists()
        assert entry["first"] is not None
    answers = [json.loads(line) for line in (run / "evaluation" / "val-3" / "answers.jsonl").read_text().splitlines()]
    scores = {row["name"]: row for row in data["scores"]}
    mean = sum(answer["score"] for answer in answers) / len(answers)
    assert mean == pytest.approx(scores["mIoU"]["tuned"], abs=1e-5)  # scores per image come from the evaluator
    assert sum(answer["reward"] for answer in answers) / len(answers) == pytest.approx(
        scores["reward"]["tuned"], abs=1e-5
    )
    assert [point[0] for point in data["series"]["val/reward"]] == [0, 2, 3]  # the base, then after rollouts
    assert [point[0] for point in data["series"]["train/reward"]] == [1, 2, 3]
    assert data["problems"] == []
    assert data["rollouts"] == 3
    assert data["ended"]
    for command in ("validate", "test"):  # later evaluations of a checkpoint are neither the base's nor a rollout's
        assert main([command, f"--config={run}/config.yaml", f"--ckpt_path={run}/checkpoints/last.ckpt"]) == 0
        later = report(run)[1]
        assert later["scores"] == data["scores"]
        assert later["series"]["train/reward"] == data["series"]["train/reward"]
    assert (run / "logs" / "version_2" / "metrics.csv").exists()


def test_a_resumed_run_counts_repeated_rollouts_once(tmp_path: Path) -> None:
    header = "epoch,step,train/reward,val/reward\n"
    for version, rows in ((0, ["0,0,,1.0", *(f"0,{i},1.0," for i in range(30)), "0,29,,1.5"]), (1, ["0,20,2.0,"])):
        folder = tmp_path / "logs" / f"version_{version}"
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text(header + "".join(f"{row}\n" for row in rows))
    write_lines(
        tmp_path / "transcripts.jsonl",
        [completion(rollout, 0, g) for rollout in (10, 20, 30, 21) for g in range(2)],
    )
    series = read_metrics(RunDir(tmp_path), [])
    assert series["train/reward"] == [*((i, 1.0) for i in range(1, 21)), (21, 2.0)]
    assert series["val/reward"] == [(0, 1.0)]  # the other evaluation followed a repeated rollout
    _, data = report(tmp_path)
    assert [group["rollout"] for group in data["groups"]] == [10, 20, 21]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        pytest.param(["0,,1.0", "0,1.0,", "1,1.0,", "2,,2.0"], [(0, 1.0), (2, 2.0)], id="base-and-end"),
        pytest.param(["0,,1.0", "0,1.0,", "0,,2.0", "1,1.0,"], [(0, 1.0), (1, 2.0)], id="within-training"),
        pytest.param(["4,1.0,", "5,,2.0"], [(5, 2.0)], id="resumed"),
        pytest.param(["5,,2.0"], [(5, 2.0)], id="nothing-left-to-train"),
    ],
)
def test_an_evaluation_has_the_number_of_the_rollout_before_it(
    rows: list[str], expected: list[tuple[int, float]], tmp_path: Path
) -> None:
    folder = tmp_path / "logs" / "version_0"
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text("step,train/reward,val/reward\n" + "".join(f"{row}\n" for row in rows))
    assert read_metrics(RunDir(tmp_path), [])["val/reward"] == expected


def test_long_curves_are_means_of_neighbours() -> None:
    points = [(i, float(i % 2)) for i in range(4 * MAX_POINTS)]
    thinned = thin(points)
    assert len(thinned) == MAX_POINTS
    assert {value for _, value in thinned} == {0.5}
    assert thinned[0][0] == 1.5


def test_the_last_rollout_of_a_long_run_is_an_integer(tmp_path: Path) -> None:
    folder = tmp_path / "logs" / "version_0"
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text("step,train/reward\n" + "".join(f"{i},1.0\n" for i in range(2 * MAX_POINTS)))
    _, data = report(tmp_path)
    assert data["rollouts"] == 2 * MAX_POINTS
    assert len(data["series"]["train/reward"]) == MAX_POINTS


def test_a_prompt_that_occurs_twice_in_a_rollout_is_two_groups(tmp_path: Path) -> None:
    write_lines(tmp_path / "transcripts.jsonl", [completion(1, 0, g) for _ in range(2) for g in range(4)])
    _, data = report(tmp_path)
    assert [len(group["answers"]) for group in data["groups"]] == [4, 4]


def test_long_runs_show_evenly_spaced_rollouts(tmp_path: Path) -> None:
    write_lines(tmp_path / "transcripts.jsonl", [completion(1 + n, n, g) for n in range(1501) for g in range(8)])
    _, data = report(tmp_path)
    rollouts = [group["rollout"] for group in data["groups"]]
    assert sum(len(group["answers"]) for group in data["groups"]) <= 5000
    assert data["all_groups"] == 1501
    assert rollouts == [*range(1, 1501, 3), 1501]


def test_the_first_and_the_last_group_of_a_prompt_are_paired(tmp_path: Path) -> None:
    order = [(1, 0), (2, 1), (3, 0), (4, 1), (9, 0)]
    write_lines(
        tmp_path / "transcripts.jsonl", [completion(rollout, sample, g) for rollout, sample in order for g in (0, 1)]
    )
    _, data = report(tmp_path)
    pairs = [[data["groups"][place]["rollout"] for place in pair] for pair in data["pairs"]]
    assert pairs == [[1, 9], [2, 4]]


def answers(scores: dict[int, float | None], images: int = 1000) -> dict[int, HeldOut]:
    return {n: HeldOut(**held_out(n, score, image_id=n % images)) for n, score in scores.items()}


def test_worst_and_most_improved_are_chosen_by_score() -> None:
    first = answers(dict.fromkeys(range(40), 0.5))
    last = answers({n: 0.5 + (n - 20) / 100 for n in range(40)} | {40: None})
    chosen = choose(first, last)
    assert chosen["improved"] == [*range(39, 27, -1)]
    assert chosen["worsened"] == [*range(12)]
    assert chosen["worst"] == [*range(12)]
    assert chosen["sample"] == [*range(0, 41, 4)]


def test_an_image_with_many_questions_is_shown_once() -> None:
    chosen = choose({}, answers({n: n / 10 for n in range(10)}, images=2))
    assert chosen["worst"] == [0, 1]
    assert chosen["improved"] == []


def test_evaluators_warnings_are_shown(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    for step in (2, 40):
        (run / "evaluation" / f"val-{step}").mkdir(exist_ok=True)
        (run / "evaluation" / f"val-{step}" / "warnings_CocoEvaluator.json").write_text(f'["tied at {step}"]')
    _, data = report(run)
    shown = [(entry["kind"], entry["text"]) for entry in data["warnings"] if "tied" in entry["text"]]
    assert shown == [("evaluation at step 2", "tied at 2"), ("evaluation at step 40", "tied at 40")]
