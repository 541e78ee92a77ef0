"""The few-shot studies: intervals, budgets, folds, and a complete study on a generated data set."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import few_shot
import numpy as np
import picked
import pytest
import torch
import yaml
from fewshot import trials
from fewshot.budget import PATIENCE, FoldBudget
from fewshot.intervals import difference, over_seeds
from fewshot.report import by_method, other_metrics, table
from fewshot.results import Results
from fewshot.study import load, names
from scipy import stats

from tests.helpers import ROOT
from tests.helpers.formats import coco_tables
from vrft.cli.named_configs import CONFIGS, config_names
from vrft.data import FreshSceneData, SceneData
from vrft.data.datasets.scenes import COLOURS, NOVEL_COLOURS, FreshScenes
from vrft.errors import ConfigurationError
from vrft.rewards import Consistency
from vrft.tasks import DetectionTask
from vrft.types import Frame, Sample


@pytest.mark.parametrize("count", [2, 3, 10])
def test_intervals_equal_those_of_scipy(count: int) -> None:
    before, after = np.random.default_rng(count).normal(0.5, 0.1, (2, count)).tolist()
    expected = stats.t.interval(0.95, count - 1, loc=np.mean(before), scale=stats.sem(before))
    assert over_seeds(before) == pytest.approx((np.mean(before), *expected))
    paired = stats.ttest_rel(after, before).confidence_interval(0.95)
    assert difference(before, after) == pytest.approx((np.mean(after) - np.mean(before), paired.low, paired.high))


def test_the_table_follows_from_the_rows() -> None:
    study = load("coco_few_shot")
    scores = {"SFT": {1: [0.1, 0.2, 0.3], 4: [0.3, 0.3, 0.3]}, "RFT": {1: [0.2, 0.4, 0.3], 4: [0.5, 0.51, 0.49]}}
    rows: list[dict[str, Any]] = [{"test": "held out", "method": "base", "shots": 0, "seed": 0, "coco/AP": 0.05}]
    rows += [
        {"test": "held out", "method": method, "shots": shots, "seed": seed, "coco/AP": value}
        for method, by_shots in scores.items()
        for shots, values in by_shots.items()
        for seed, value in reversed([*enumerate(values)])  # the order of rows does not matter
    ]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table(Results(study, rows), "held out")[4:-1]]
    half = stats.t.ppf(0.975, 2) * 0.1 / 3**0.5
    assert lines[0][:4] == ["1", "0.050", f"0.200 ± {half:.3f}", f"0.300 ± {half:.3f}"]
    assert lines[0][4] == f"+0.100 [{0.1 - half:+.3f}, {0.1 + half:+.3f}]"
    assert lines[1][4].startswith("**+0.200 [+0.175")  # bold: the interval excludes 0
    assert lines[0][5:] == ["0.196", "0.195", "0.336"]  # the paper's numbers
    assert lines[1][5:] == ["0.196", "0.252", "0.406"]
    over = stats.t.ppf(0.975, 2) * stats.sem([0.35, 0.455, 0.395])
    assert lines[2][2:4] == [f"0.250 ± {half / 2:.3f}", f"0.400 ± {over:.3f}"]  # over seeds, of means over shots


def evaluations(scores: list[float], seconds: float, budget: float) -> list[dict[str, float]]:
    """Simulate a trial with intervals of `seconds`, check that it ends with the best weights and return its log."""
    module = torch.nn.Linear(1, 1, bias=False)
    callback = FoldBudget("val/x", budget)
    clock = SimpleNamespace(now=100.0)
    callback.now = lambda: clock.now
    trainer = SimpleNamespace(callback_metrics={}, global_step=0, should_stop=False, default_root_dir=".")
    for step, score in enumerate(scores):
        if step == 1:
            callback.on_train_start(trainer, module)  # type: ignore[arg-type]
        clock.now += seconds * (step > 0)
        module.weight.data.fill_(step)
        trainer.global_step, trainer.callback_metrics = step, {"val/x": torch.tensor(score)}
        callback.on_validation_end(trainer, module)  # type: ignore[arg-type]
        if trainer.should_stop:
            break
    callback.on_train_end(trainer, module)  # type: ignore[arg-type]
    assert int(module.weight) == scores.index(max(scores[: step + 1]))
    return callback.evaluations


@pytest.mark.parametrize(
    ("scores", "seconds", "budget", "steps"),
    [
        pytest.param([0.1, 0.2, 0.3, 0.4, 0.5], 3.0, 10.0, 3, id="a-fourth-interval-would-not-fit"),
        pytest.param([0.1, 0.2, 0.3, 0.4, 0.5], 2.5, 10.0, 4, id="the-fourth-just-fits"),
        pytest.param([0.5, 0.2, 0.3], 30.0, 10.0, 1, id="the-first-interval-always-runs-and-the-base-is-kept"),
        pytest.param([0.1, 0.2, *[0.1] * 9], 0.1, 10.0, 1 + PATIENCE, id="patience-ends-training"),
        pytest.param([0.1, 0.2, 0.1, 0.1, 0.1, 0.3, 0.1, 0.1, 0.1, 0.1, 0.4], 0.1, 10.0, 9, id="patience-restarts"),
    ],
)
def test_training_ends_within_its_budget_with_the_best_weights(
    scores: list[float], seconds: float, budget: float, steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = evaluations(scores, seconds, budget)
    assert [look["step"] for look in found] == list(range(steps + 1))
    assert found[-1]["seconds"] == pytest.approx(steps * seconds)
    assert json.loads((tmp_path / "fold.json").read_text()) == found


@pytest.mark.parametrize("name", [name for name in names() if name != "ablation_time"])
def test_every_study_can_be_read_and_gives_its_methods_the_same_budget(name: str) -> None:
    study = load(name)
    assert study.trained in names()
    assert len(study.fold["trainer.callbacks"]) == 1  # the callback that scores the fold
    assert all(method.config in config_names() for method in study.methods.values())
    spent = {key: method.budget or study.budget for key, method in study.methods.items()}
    total = {key: spent[key] + (spent[method.after] if method.after else 0) for key, method in study.methods.items()}
    parts = {method.after for method in study.methods.values()}  # methods that others start from are not compared
    assert {value for key, value in total.items() if key not in parts} == {study.budget}


@cache
def data_class(config: str) -> str:
    data = yaml.safe_load((CONFIGS / f"{config}.yaml").read_text())["data"]
    return str((yaml.safe_load((CONFIGS / data).read_text()) if isinstance(data, str) else data)["class_path"])


def shapes(config: str, command: list[str]) -> set[tuple[object, str]]:
    """Return arguments without numbers and paths, each with what decides whether it is accepted.

    Names of configs are left out: tests/test_configs.py reads each of them.
    """
    context = {"--model": config.endswith("_sft"), "--data": data_class(config)}
    words = [word for word in command[1:] if word.startswith("--") and word != "--config"]
    return {(context.get(word.partition(".")[0]), re.sub(r"[^\s\"=]*/[^\s\"]*|[\d.e+-]+", "0", word)) for word in words}


def few_commands(folder: Path) -> list[list[str]]:
    """Return commands of methods, as few as have every option of all methods of all studies."""
    tried: list[list[str]] = []

    def trial(self: trials.Runner, command: list[str], place: Path, rate: float) -> dict[str, Any]:
        tried.append(command)
        return {"learning_rate": rate, "fold": -rate, "seconds": 1.0, "export": str(folder)}  # the first rate wins

    options: list[tuple[list[str], set[tuple[object, str]]]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trials.Runner, "trial", trial)
        for study in map(load, names()):
            for name, method in study.methods.items():
                trials.Runner(folder, "cuda").tune(study, name, 1, 0)
                options.append((tried[-1], shapes(method.config, tried[-1])))
    chosen: list[list[str]] = []
    seen: set[tuple[object, str]] = set()
    while new := max((needed - seen for _, needed in options), key=len):
        chosen.append(next(command for command, needed in options if needed - seen == new))
        seen |= new
    return chosen


@pytest.mark.slow
def test_the_settings_of_every_method_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    commands = few_commands(tmp_path)
    assert len(commands) > 10
    for command in commands:
        with pytest.raises(SystemExit) as ended:
            trials.main([*command, "--print_config"])
        assert ended.value.code == 0, capsys.readouterr().err


def test_studies_share_only_equal_runs() -> None:
    runs: dict[str, list[tuple[str, Any]]] = {}
    for name in names():
        study = load(name)
        for method in study.methods.values():
            what = (study.settings | study.fold, replace(method, budget=method.budget or study.budget, folder=""))
            runs.setdefault(method.folder, []).append((study.trained, what))
    for folder, users in runs.items():
        assert all(what == users[0][1] for _, what in users), folder
    shared = {folder: {trained for trained, _ in users} for folder, users in runs.items()}
    assert {folder for folder, users in shared.items() if len(users) > 1} == {"ablation_time/SFT", "ablation_time/RFT"}
    assert len(shared["ablation_time/RFT"]) > 5


def test_with_one_number_of_shots_the_table_has_a_row_per_method() -> None:
    study = load("ablation_kl")
    scores = {"RFT": [0.1, 0.2, 0.3], "beta = 0": [0.2, 0.3, 0.4], "beta = 0.2": [0.1, 0.1, 0.1]}
    rows: list[dict[str, Any]] = [{"test": "novel colours", "method": "base", "shots": 0, "seed": 0, "mIoU": 0.05}]
    rows += [
        {"test": "novel colours", "method": method, "shots": 4, "seed": seed, "mIoU": value}
        for method, values in scores.items()
        for seed, value in enumerate(values)
    ]
    lines = by_method(Results(study, rows), "novel colours")
    half = stats.t.ppf(0.975, 2) * 0.1 / 3**0.5
    assert lines[4:-1] == [
        "| base | 0.050 | |",
        f"| RFT | 0.200 ± {half:.3f} |  |",
        f"| beta = 0 | 0.300 ± {half:.3f} | **+0.100 [+0.100, +0.100]** |",
        f"| beta = 0.2 | 0.100 ± 0.000 | -0.100 [{-0.1 - half:+.3f}, {-0.1 + half:+.3f}] |",
    ]


@pytest.mark.parametrize(("name", "compared"), [("ablation_kl", True), ("ablation_reward", False)])
def test_rewards_are_compared_only_if_all_methods_have_the_same_ones(name: str, compared: bool) -> None:
    study = load(name)
    scores = dict.fromkeys([study.metric, *study.metrics], 0.5)
    rows: list[dict[str, Any]] = [
        {"test": test, "method": method, "shots": 4, "seed": 0, **scores}
        for test in study.tests
        for method in ("base", *study.methods)
    ]
    lines = other_metrics(Results(study, rows))
    assert any("| valid |" in line for line in lines)
    assert any("| reward |" in line for line in lines) == compared


def scene_data(folder: Path, shots: int, seed: int = 0, **more: Any) -> SceneData:
    files = [str(folder / name) for name in ("train.json", "train", "val.json", "val")]
    names = [*COLOURS, *NOVEL_COLOURS]
    data = SceneData(*files, train_size=120, val_size=20, colours=names, shots=shots, seed=seed, **more)
    data.prepare_data()
    asking = SimpleNamespace(task=DetectionTask())
    data.trainer = SimpleNamespace(default_root_dir=str(folder / "run"), lightning_module=asking)  # type: ignore[assignment]
    data.setup("fit")
    return data


def test_shots_fold_and_test_share_no_image(tmp_path: Path) -> None:
    def images(data: SceneData) -> tuple[set[Any], set[Any]]:
        return {record.image for record in data.train_set().records}, {r.image for r in data.val_set().records}

    novel = {"categories": list(NOVEL_COLOURS)}
    fold: dict[int, set[Any]] = {}
    train: dict[int, set[Any]] = {}
    for shots in (1, 4):
        data = scene_data(tmp_path, shots, val_shots=3, **novel)
        train[shots], fold[shots] = images(data)
        assert len(data.train_set()) == shots * len(NOVEL_COLOURS)
        assert len(data.val_set()) == 3 * len(NOVEL_COLOURS)
    _, test = images(scene_data(tmp_path, 4, **novel))
    assert fold[1] == fold[4]  # the same fold for all numbers of shots
    assert train[1] <= train[4]
    assert not train[4] & fold[4]
    assert not (train[4] | fold[4]) & test
    assert images(scene_data(tmp_path, 4, seed=1, val_shots=3, **novel))[1] != fold[4]


def test_a_fold_that_is_larger_than_the_data_allows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"data\.val_shots: expected at least 500 images of 'brown', got \d+"):
        scene_data(tmp_path, 1, val_shots=500, categories=["brown"])
    with pytest.raises(ConfigurationError, match=r"data\.val_shots: data\.val_fraction"):
        scene_data(tmp_path, 1, val_shots=5, val_fraction=0.5)


def test_pairs_are_numbered_from_left_to_right(tmp_path: Path) -> None:
    data = scene_data(tmp_path, 1, ordinals=["red", "navy"], categories=["red one", "red two"])
    boxes = data.instances.boxes  # type: ignore[union-attr]
    pairs = [found for found in boxes.values() if "red one" in found]
    assert len(pairs) > 40
    for found in pairs:
        (one,), (two,) = found["red one"], found["red two"]
        assert one.box[0] + one.box[2] <= two.box[0] + two.box[2]
        assert "red" not in found


def test_pretraining_scenes_can_contain_pairs() -> None:
    taught, before = ["purple", "navy"], FreshScenes(40, 0, seed=3)
    scenes = FreshScenes(40, 0, seed=3, ordinals=taught)
    paired = [scenes[i] for i in range(40)]
    words = {"one", "two"}
    assert all(
        (sample.query, sample.target) == (before[i].query, before[i].target)
        for i, sample in enumerate(paired)
        if i % 4 == 0
    )
    asked = [sample for i, sample in enumerate(paired) if i % 4 and words & {*sample.query.split()}]
    assert len(asked) > 20
    assert {sample.query for sample in asked} == {f"{colour} {word}" for colour in taught for word in words}
    assert all(len(sample.target) == 1 for sample in asked)
    with pytest.raises(ConfigurationError, match=r"data\.ordinals: expected colours among red, green.*'mauve'"):
        FreshSceneData(steps=1, ordinals=["mauve"])


@pytest.mark.parametrize(
    ("boxes", "found"),
    [
        pytest.param([[1, 1, 10, 10]], ["right", "wrong"], id="left"),
        pytest.param([[20, 0, 20, 10], [31, 0, 9, 10]], ["wrong", "right"], id="the-best-box-decides"),
        pytest.param([[0, 0, 10, 9], [30, 0, 10, 10]], ["wrong", "right"], id="the-larger-overlap-decides"),
        pytest.param([[0, 0, 10, 10], [30, 0, 10, 10]], ["neither", "neither"], id="equal-overlaps-decide-nothing"),
        pytest.param([[15, 0, 10, 10]], ["neither", "neither"], id="neither"),
        pytest.param([], ["neither", "neither"], id="no-boxes"),
    ],
)
def test_the_picked_object_of_a_pair_is_counted(
    boxes: list[list[float]], found: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"red one": [0, 0, 10, 10], "blue": [50, 50, 10, 10], "red two": [30, 0, 10, 10]}
    instances = {
        "categories": [{"id": i, "name": name} for i, name in enumerate(names)],
        "annotations": [{"image_id": 7, "category_id": i, "bbox": box} for i, box in enumerate(names.values())],
    }
    results = [{"image_id": 7, "category_id": i, "bbox": box} for i in range(3) for box in boxes]
    (tmp_path / "true.json").write_text(json.dumps(instances))
    (tmp_path / "found.json").write_text(json.dumps(results))
    assert picked.picked(instances, results) == found  # the blue object has no pair
    picked.main([f"{tmp_path}/true.json", f"{tmp_path}/found.json"])
    shares = ", ".join(f"{name} {found.count(name) / 2:.3f}" for name in ("right", "wrong", "neither"))
    assert capsys.readouterr().out.startswith(f"{shares} of 2  ")


def test_consistency_is_the_mean_agreement_with_the_other_answers() -> None:
    from PIL import Image

    about = [Sample(i, (Image.new("RGB", (1000, 1000)),), i, "cat", ()) for i in (0, 0, 0, 1)]
    texts = [f"<answer>[{{'Position': [0, 0, {x}, 100], 'Confidence': 1}}]</answer>" for x in (100, 50)]
    texts += ["<answer>?</answer>", texts[0]]
    frame = Frame(1000, 1000)
    answers = [DetectionTask().parse(text, sample, frame) for text, sample in zip(texts, about, strict=True)]
    # the smaller box is half of the larger one; an unreadable answer agrees with nothing; a single answer has no score
    assert Consistency().scores(answers, about) == [0.25, 0.25, 0.0, None]


def test_trials_are_chosen_by_the_fold_and_later_methods_start_from_the_chosen_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: dict[str, list[str]] = {}

    def trial(self: trials.Runner, command: list[str], folder: Path, rate: float) -> dict[str, Any]:
        (folder / "export").mkdir(parents=True, exist_ok=True)
        name = f"{folder.parent.name}/{folder.name}"
        commands[name] = command
        fold = {"SFT,_half-16-shots-seed-0/lr-0.0006": 0.4}.get(name, 0.3)
        return {"learning_rate": rate, "step": 8, "fold": fold, "seconds": 2.0, "export": f"{folder}/export"}

    monkeypatch.setattr(trials.Runner, "trial", trial)
    runner = trials.Runner(tmp_path, "cpu", ("--model.policy.checkpoint=mine", "--data.shots=99"))
    study = load("ablation_sft_first")
    study = replace(
        study, methods={key: replace(method, learning_rates=(3e-4, 6e-4)) for key, method in study.methods.items()}
    )
    choice = runner.tune(study, "SFT then RFT", 16, 0)
    assert choice["learning_rate"] == 3e-4  # ties go to the first
    assert choice["seconds"] == 4.0  # the sum of both trials
    after = commands["SFT_then_RFT-16-shots-seed-0/lr-0.0003"]
    starts = [part for part in after if part.startswith("--model.policy.checkpoint=")]
    assert starts[-1].endswith("SFT,_half-16-shots-seed-0/lr-0.0006/export")  # overrides the argument of all runs
    assert [part for part in after if part.startswith("--data.shots=")][-1] == "--data.shots=16"
    assert sorted(name.partition("/")[0] for name in commands) == sorted(
        2 * ["SFT,_half-16-shots-seed-0"] + 2 * ["SFT_then_RFT-16-shots-seed-0"]
    )


def data_of(folder: Path) -> list[str]:
    """Write COCO files with red and green shapes; return arguments for them, a tiny policy and runs of seconds."""
    arguments = []
    for part, count, start in (("train", 26, 1), ("val", 4, 1001)):
        tables, _ = coco_tables(folder / part, part, count, start)
        (folder / f"{part}.json").write_text(json.dumps(tables))
        arguments += [f"--data.{part}_annotations={folder}/{part}.json", f"--data.{part}_images={folder}/{part}"]
    small = ["--model.policy.checkpoint=tiny-detection", "--model.policy.dtype=float32", "--model.policy.lora.r=2"]
    small += ["--data.batch_size=2", "--data.num_workers=0", "--model.max_completion_length=24"]
    small += ["--model.policy.max_pixels=3136", "--trainer.val_check_interval=1", "--data.categories=[red, green]"]
    return arguments + small


@pytest.mark.slow
def test_a_study_of_the_paper_runs_and_a_rerun_makes_only_missing_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    done: list[str] = []
    made: dict[tuple[bool, ...], Path] = {}
    vrft_main = trials.main

    def run(command: list[str]) -> int:
        """Run one command of each kind, and copy the results of those that differ in the learning rate alone."""
        done.append(command[0])
        folder = Path(next(word for word in command if word.startswith("--run_dir=")).removeprefix("--run_dir="))
        kind = (command[0] == "fit", "coco_few_shot_sft" in command, any("export" in word for word in command))
        if kind not in made:
            assert vrft_main(command) == 0
            made[kind] = shutil.copytree(folder, tmp_path / "kept" / str(len(made)))
        else:
            shutil.copytree(made[kind], folder)
        return 0

    monkeypatch.setattr(trials, "main", run)
    command = ["--config", "coco_few_shot", "--shots", "1", "--seeds", "1", "--budget", "0.2"]
    command += ["--results", f"{tmp_path}/runs", "--out", f"{tmp_path}/out"]
    more = ["--", *data_of(tmp_path)]
    few_shot.main([*command, *more])
    assert done == ["test", "fit", "fit", "test", "fit", "fit", "test"]  # base, SFT, RFT
    assert len(made) == 5
    text = (tmp_path / "out" / "few_shot_coco_few_shot.md").read_text()
    assert "0.196 | 0.195 | 0.336 |" in text
    assert (tmp_path / "out" / "few_shot_coco_few_shot.png").stat().st_size > 5000
    with (tmp_path / "out" / "few_shot_coco_few_shot.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == ["base", "SFT", "RFT"]
    assert all(float(row["seconds"]) > 0 for row in rows[1:])

    done.clear()
    few_shot.main([*command, *more])
    assert done == []
    lost = tmp_path / "runs" / "coco_few_shot" / "RFT-1-shots-seed-0"
    (lost / "lr-2e-05" / "trial.json").unlink()
    few_shot.main([*command, *more])
    assert done == ["fit", "test"]
    with pytest.raises(SystemExit, match="made with other settings"):
        few_shot.main([*command, *more, "--model.max_completion_length=25"])
