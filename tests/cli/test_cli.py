"""The command line from a user's point of view: fit, validate, test, predict, overrides and mistakes."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
import yaml

from tests.helpers import CSV_ONLY, UNJUDGED, Command
from tests.helpers.finished import EVERYTHING, Finished
from vrft.__main__ import main
from vrft.callbacks.summary import Summary
from vrft.report import read_run
from vrft.run_dir import RunDir
from vrft.training.module import VisionModule


def test_a_summary_has_the_same_scores_as_a_report(tmp_path: Path) -> None:
    metrics = {f"val/{name}": torch.tensor(0.5) for name in ("gIoU", "Acc@0.5", "class_accuracy", "presence/recall")}
    trainer = SimpleNamespace(sanity_checking=False, callback_metrics=metrics, global_step=3, is_global_zero=False)
    summary = Summary()
    summary.on_validation_end(trainer, Mock(spec=VisionModule, steps_done=3))  # type: ignore[arg-type]
    assert {*(summary.base or ())} == {"gIoU", "Acc@0.5", "class accuracy", "recall"}


def test_a_summary_compares_scores_that_both_evaluations_have(tmp_path: Path) -> None:
    summary = Summary()
    summary.base, summary.tuned = {"mAP": 0.1, "reward": 1.0}, {"reward": 2.0, "accuracy": 0.5}
    written = json.loads(summary.write(RunDir(tmp_path), None).read_text())
    assert written["base"] == {"mAP": 0.1, "reward": 1.0}


def test_a_summary_has_the_scores_of_the_best_checkpoint_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = Summary()
    summary.base, summary.tuned, summary.tuned_step = {"mAP": 0.1, "reward": 1.0}, {"mAP": 0.2, "reward": 2.0}, 40
    (tmp_path / "evaluation" / "val-20").mkdir(parents=True)
    (tmp_path / "evaluation" / "val-20" / "scores.json").write_text('{"mAP": 0.3, "reward": 1.5}')
    best = {"checkpoint": "step=20.ckpt", "metric": "val/coco/AP", "score": 0.3, "step": 20}
    written = json.loads(summary.write(RunDir(tmp_path), best).read_text())
    assert written["best"] == best | {"scores": {"mAP": 0.3, "reward": 1.5}}
    rows = [line.replace("┃", "│").split("│")[1:-1] for line in capsys.readouterr().out.splitlines()]
    cells = [[cell.strip() for cell in row] for row in rows if row]
    assert cells[0] == ["", "base", "last", "change", "best (step 20)", "change"]
    assert cells[1] == ["mAP", "0.100", "0.200", "+0.100", "0.300", "+0.200"]
    (tmp_path / "logs").mkdir()
    (tmp_path / "evaluation" / "val-20" / "resampled_CocoEvaluator.json").write_text(
        json.dumps({"digest": "x", "images": 9, "scores": {"coco/AP": [0.25] * 100 + [0.35] * 100}})
    )
    data = read_run(RunDir(tmp_path), [])
    assert data["best_step"] == 20
    scores = {score["name"]: (score["best"], score["best_interval"]) for score in data["scores"]}
    assert scores == {"mAP": (0.3, (0.25, 0.35)), "reward": (1.5, None)}


def test_fit_leaves_everything_in_the_run_folder(finished: Finished) -> None:
    run = finished.folder / "run"
    summary = json.loads((run / "summary.json").read_text())
    assert set(summary) == {"base", "tuned", "seconds", "step", "rollouts", "best"}
    scores = ["mAP", "AP50", "mAP by stated confidence", "mAP by token probability", "calibration error"]
    assert list(summary["base"]) == list(summary["tuned"]) == [*scores, "mIoU", "valid", "reward"]
    assert summary["base"] != summary["tuned"]
    with (run / "logs" / "version_0" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    rollouts = [row for row in rows if row["train/reward"]]
    assert len(rollouts) == 3
    logged = {name for name, value in rollouts[0].items() if value}
    assert logged >= {
        *(f"train/{name}" for name in ("reward", "reward/iou", "reward/confidence", "reward/format", "reward_std")),
        *(f"train/{name}" for name in ("zero_variance_groups", "kl", "entropy", "completion_length", "clip_fraction")),
        *(f"train/{name}" for name in ("truncated", "learning_rate", "grad_norm", "valid")),
        *(f"time/{name}" for name in ("rollout", "reward", "update")),
    }
    weights = {"iou": 0.5, "confidence": 3, "format": 1}
    parts = sum(weight * float(rollouts[0][f"train/reward/{name}"]) for name, weight in weights.items())
    assert float(rollouts[0]["train/reward"]) == pytest.approx(parts, abs=1e-5)
    assert float(rollouts[0]["train/kl"]) == pytest.approx(0, abs=1e-6)  # the first step starts at the reference
    transcripts = [json.loads(line) for line in (run / "transcripts.jsonl").read_text().splitlines()]
    assert {entry["rollout"] for entry in transcripts} == {1, 2, 3}
    assert len(transcripts) == 3 * 4 * 8  # four prompts per rollout with all completions
    group = transcripts[:8]
    assert sum(entry["advantage"] for entry in group) == pytest.approx(0, abs=1e-4)
    assert list((run / "wandb").glob("offline-run-*/*.wandb"))
    media = {path.name.split("_")[0] for path in (run / "wandb").glob("offline-run-*/files/media/*/val/coco/*")}
    assert media == {"per", "calibration", "precision"}  # tables per category and per confidence, and a picture
    assert (run / "checkpoints" / "last.ckpt").exists()
    from transformers import AutoModelForImageTextToText

    assert AutoModelForImageTextToText.from_pretrained(run / "export").config.model_type == "qwen2_vl"


def test_saved_config_reruns_unchanged_in_a_new_folder(finished_run: Path, tmp_path: Path) -> None:
    assert main(["fit", "--config", str(tmp_path / "run" / "config.yaml")]) == 0
    first, second = (yaml.safe_load((tmp_path / name / "config.yaml").read_text()) for name in ("run", "run-2"))
    assert second.pop("run_dir") == first.pop("run_dir") + "-2"
    assert first == second
    for name in ("base", "tuned"):
        scores = [json.loads((tmp_path / run / "summary.json").read_text())[name] for run in ("run", "run-2")]
        assert scores[0] == scores[1]


def printed_config(capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, object]:
    with pytest.raises(SystemExit) as stop:
        main([*args, "--print_config"])
    assert stop.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_overrides_reach_their_fields(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    later = tmp_path / "later.yaml"
    later.write_text("model: {init_args: {num_generations: 4}}\n")
    config = printed_config(
        capsys,
        *("fit", "--config", "quickstart", "--config", str(later)),
        *("--model.beta=0.01", "--data.shots=4", "--trainer.max_steps=10", "--model.rewards.iou.threshold=0.3"),
    )
    model = config["model"]["init_args"]
    assert (model["beta"], model["num_generations"]) == (0.01, 4)
    assert model["rewards"]["iou"]["init_args"]["threshold"] == 0.3
    assert config["data"]["init_args"]["shots"] == 4
    assert config["trainer"]["max_steps"] == 10


@pytest.mark.parametrize("where", ["command line", "later config"])
def test_an_override_reaches_fields_derived_from_it(where: str, quick_fit: Command, tmp_path: Path) -> None:
    later = tmp_path / "later.yaml"
    later.write_text("seed_everything: 7\n")
    more = ["--seed_everything=7"] if where == "command line" else ["--config", str(later)]
    assert main(quick_fit(CSV_ONLY, UNJUDGED, "--trainer.max_steps=1", "--model.beta=0", *more)) == 0
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert saved["data"]["init_args"]["seed"] == 7  # ${seed_everything} in the file


def test_rewards_can_be_added_and_weighted(quick_fit: Command, tmp_path: Path) -> None:
    more = ["--model.rewards.second=vrft.rewards.Format", "--model.rewards.second.weight=0.5"]
    more += ["--model.rewards.iou.weight=0", "--model.rewards.confidence.weight=0"]
    assert main(quick_fit(CSV_ONLY, UNJUDGED, *more)) == 0
    with (tmp_path / "run" / "logs" / "version_0" / "metrics.csv").open() as file:
        row = next(row for row in csv.DictReader(file) if row["train/reward"])
    assert float(row["train/reward/second"]) == float(row["train/reward/format"])
    assert float(row["train/reward"]) == pytest.approx(1.5 * float(row["train/reward/format"]))
    assert float(row["train/reward/iou"]) > 0  # logged, with weight 0


def test_lora_run_saves_adapters_alone(quick_fit: Command, tmp_path: Path) -> None:
    more = ["--model.policy.lora.r=4", "--model.policy.freeze_vision=true", "--model.num_iterations=2"]
    assert main(quick_fit(CSV_ONLY, *more)) == 0
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    names = set(checkpoint["state_dict"]) - {"steps_done"}
    assert names
    assert all("lora_" in name for name in names)
    assert (tmp_path / "run" / "export" / "adapter" / "adapter_model.safetensors").exists()


@pytest.mark.slow
def test_sft_on_the_same_data(tiny_scenes: list[str], tmp_path: Path) -> None:
    short = ["--trainer.max_steps=3", f"--run_dir={tmp_path}/run", "--trainer.enable_progress_bar=false", CSV_ONLY]
    short.append(UNJUDGED)
    assert main(["fit", "--config", "quickstart_sft", *tiny_scenes, *short]) == 0
    with (tmp_path / "run" / "logs" / "version_0" / "metrics.csv").open() as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert losses[-1] < losses[0]


def test_validate_test_and_predict(
    quick_fit: Command, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned = json.loads((tmp_path / "run" / "summary.json").read_text())["tuned"]
    arguments = [argument for argument in quick_fit(*EVERYTHING, CSV_ONLY)[1:] if "max_steps" not in argument]
    capsys.readouterr()
    for command, key in (("validate", "val/mIoU"), ("test", "test/mIoU")):
        assert main([command, *arguments, "--ckpt_path=last"]) == 0
        line = next(line for line in capsys.readouterr().out.splitlines() if key in line)
        assert float(line.split("│")[-2]) == pytest.approx(tuned["mIoU"], abs=5e-4)  # three decimals
    assert main(["predict", *arguments, "--ckpt_path=last"]) == 0
    answers = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    truth = json.loads((tmp_path / "val.json").read_text())
    assert len(answers) == len({(box["image_id"], box["category_id"]) for box in truth["annotations"]})


MISTAKES = [
    (["--model.bta=0.1"], "model.bta", "did you mean 'beta'"),
    (["--trainer.max_step=3"], "trainer.max_step", "did you mean 'trainer.max_steps'"),
    (["--model.rewards.iou.treshold=0.3"], "model.rewards.iou.treshold", "did you mean 'threshold'"),
    (["--modle.beta=0.1"], "modle.beta", "did you mean 'model.beta'"),
    (["quickstart.yaml"], "quickstart.yaml", "--config FILE"),
    (["--model.rewards.iuo.weight=2"], "model.rewards.iuo.weight", "is the name right?"),
    (["--task=DetectionTsk"], "task", "did you mean 'vrft.tasks.DetectionTask'"),
    (["--model.class_path=vrft.RTF"], "model.class_path", "did you mean 'vrft.RFT'"),
    (["--data.batch_size=many"], "data.batch_size", "int"),
    (["--model.policy.dtype=float64"], "model.policy.dtype", "bfloat16"),
    (["--model.policy.checkpoint=tiny-detecton"], "model.policy.checkpoint", "did you mean 'tiny-detection'"),
    (["--model.policy.checkpoint=tests"], "model.policy.checkpoint", "no config.json"),
    (["--model.num_generations=1"], "model.num_generations", "at least 2"),
    (["--task.template={colour}"], "task.template", "{colour} can't be filled in"),
    (
        ["--data=CocoData", "--data.train_annotations=no.json"],
        "data.train_annotations",
        "expected a COCO or LVIS instances file",
    ),
    (["--ckpt_path=last"], "ckpt_path", "last.ckpt"),
    (["--trainer.callbacks.annotations=${nope}"], "nope", "not found"),
    (["--trainer.accelerator=mps"], "trainer: ", "MPSAccelerator"),
]


@pytest.mark.parametrize(
    "text",
    [
        "model: [",
        "run_dir: 2026-99-99",
        "model: !!float ''",
        "model: !!python/name:os.system",
        pytest.param(f"model: 1{':0' * 200}.", id="more-minutes-than-a-float-holds"),
    ],
)
def test_a_config_that_is_not_yaml_is_one_line(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command, path, option in (("fit", "mine.yaml", "--config="), ("export", "config.yaml", "")):
        (tmp_path / path).write_text(text)
        assert main([command, f"{option}{tmp_path / path if option else tmp_path}"]) == 2
        error = capsys.readouterr().err
        assert error.startswith("vrft: ")
        assert str(tmp_path / path) in error


@pytest.mark.parametrize(("mistake", "field", "hint"), MISTAKES, ids=lambda value: str(value)[:40])
def test_a_mistake_is_one_line_that_names_the_field(
    mistake: list[str], field: str, hint: str, quick_fit: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = quick_fit(*mistake)
    if mistake[0] == "--data=CocoData":
        arguments = [argument for argument in arguments if "_size" not in argument and "train.json" not in argument]
    assert main(arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vrft:")]
    assert len(lines) == 1
    assert field in lines[0]
    assert hint in lines[0]
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        (["fit", "--config", "quickstrat"], "did you mean --config quickstart?"),
        (["fti", "--config", "quickstart"], "'fit'"),
    ],
)
def test_a_wrong_command_or_file(args: list[str], hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == 2
    assert hint in capsys.readouterr().err


def test_a_checkpoint_of_other_settings_is_refused(
    quick_fit: Command, finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(quick_fit(CSV_ONLY, "--ckpt_path=last", "--model.policy.lora.r=4")) == 2
    assert "ckpt_path: made with other model settings" in capsys.readouterr().err
