"""Lightning's own settings: each works, or is refused with vrft's setting before anything is loaded."""

from __future__ import annotations

import csv
import inspect
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from tests.helpers import CSV_ONLY, Command, callback
from vrft import RFT
from vrft.__main__ import main
from vrft.cli.trainer import TRAINER_DEFAULTS, describe_devices
from vrft.cli.trainer_settings import ONLY, check_trainer_settings
from vrft.errors import ConfigurationError

ARGUMENTS = {name: argument.default for name, argument in inspect.signature(Trainer.__init__).parameters.items()}
DEFAULTS = {**ARGUMENTS, **TRAINER_DEFAULTS}
del DEFAULTS["self"]

WORKS = {
    *("accelerator", "strategy", "devices", "num_nodes", "precision"),  # checked in vrft.training
    *("logger", "callbacks", "plugins", "profiler", "enable_progress_bar", "enable_model_summary"),
    *("max_epochs", "min_epochs", "max_steps", "min_steps", "max_time", "log_every_n_steps", "default_root_dir"),
    *("limit_val_batches", "limit_test_batches", "limit_predict_batches"),
    *("val_check_interval", "check_val_every_n_epoch"),
    *("deterministic", "benchmark", "detect_anomaly", "enable_autolog_hparams"),
}
"""Arguments of Lightning's Trainer that may have other values than the default, within limits."""


def check(**settings: Any) -> None:
    check_trainer_settings(Namespace({**DEFAULTS, "max_steps": 3, **settings}), "runs/a", trains=True)


def test_every_argument_of_lightnings_trainer_is_decided() -> None:
    assert {*DEFAULTS} == WORKS ^ {*ONLY}


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"fast_dev_run": True}, r"fast_dev_run: expected false, got true; --trainer\.max_steps=1"),
    ({"fast_dev_run": 3}, "fast_dev_run: expected false, got 3"),
    ({"overfit_batches": 1}, "overfit_batches: "),
    ({"limit_train_batches": 1}, "limit_train_batches: expected 1.0, got 1; trainer.max_steps"),
    ({"limit_train_batches": 0.5}, "limit_train_batches: expected 1.0, got 0.5"),
    (
        {"accumulate_grad_batches": 4},
        r"accumulate_grad_batches: expected 1, got 4; .*model\.max_tokens_",
    ),
    ({"gradient_clip_val": 0.0}, r"gradient_clip_val: expected null, got 0.0; model\.max_grad_norm"),
    ({"gradient_clip_algorithm": "value"}, "gradient_clip_algorithm: expected norm, got value"),
    ({"barebones": True}, "barebones: expected false, got true"),
    (
        {"enable_checkpointing": False},
        r"enable_checkpointing: expected true, got false; checkpoint\.every",
    ),
    ({"num_sanity_val_steps": 2}, "num_sanity_val_steps: expected 0, got 2; `fit` evaluates"),
    ({"num_sanity_val_steps": None}, "num_sanity_val_steps: expected 0, got null"),
    ({"inference_mode": True}, "inference_mode: "),
    ({"use_distributed_sampler": True}, "use_distributed_sampler: "),
    ({"reload_dataloaders_every_n_epochs": 1}, "reload_dataloaders_every_n_epochs: "),
    ({"sync_batchnorm": True}, "sync_batchnorm: "),
    ({"model_registry": "mine"}, "model_registry: expected null, got mine"),
    ({"default_root_dir": "elsewhere"}, "default_root_dir: expected null, got elsewhere; run_dir is"),
    ({"log_every_n_steps": 0}, "log_every_n_steps: expected at least 1"),
    ({"max_steps": 0}, "max_steps: expected at least 1"),
    ({"max_epochs": 0}, "max_epochs: expected at least 1"),
    ({"max_steps": -2}, "max_steps: expected at least 1, or -1 for no limit, got -2"),
    ({"max_epochs": -2}, "max_epochs: expected at least 1, or -1 for no limit, got -2"),
    (
        {"val_check_interval": 0.25},
        r"val_check_interval: expected a number of rollouts, got 0.25; .*n_epoch=1",
    ),
    ({"val_check_interval": None}, "val_check_interval: expected a number of rollouts, got null"),
    ({"val_check_interval": 0}, "val_check_interval: expected at least 1, got 0"),
    ({"val_check_interval": timedelta(minutes=5)}, "val_check_interval: expected a number of rollouts, got 0:05:00"),
    ({"val_check_interval": "00:00:05:00"}, "val_check_interval: expected a number of rollouts, got 00:00:05:00"),
    ({"check_val_every_n_epoch": 1}, "val_check_interval: expected a share of an epoch, .*, got 100"),
    ({"check_val_every_n_epoch": 0, "val_check_interval": 1.0}, "check_val_every_n_epoch: expected at least 1 or null"),
]


@pytest.mark.parametrize(("settings", "said"), REFUSED)
def test_a_setting_is_refused_by_name(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"^trainer\.{said}"):
        check(**settings)


ACCEPTED: list[dict[str, Any]] = [
    {},
    {"max_epochs": -1, "max_steps": -1},
    {"max_time": {"minutes": 3}, "max_steps": -1},
    {"max_epochs": 3, "max_steps": -1, "max_time": "00:01:00:00"},
    {"limit_train_batches": 1.0, "overfit_batches": 0, "fast_dev_run": 0, "gradient_clip_algorithm": "norm"},
    {"val_check_interval": 1.0, "check_val_every_n_epoch": 2},
    {"val_check_interval": 1},
    {"default_root_dir": "runs/a"},
]


@pytest.mark.parametrize("settings", ACCEPTED)
def test_a_setting_is_accepted(settings: dict[str, Any]) -> None:
    check(**settings)


def test_a_run_without_an_end_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"^trainer: the run has no end; set trainer\.max_steps, "):
        check(max_steps=-1)
    check_trainer_settings(Namespace({**DEFAULTS, "max_steps": -1}), "runs/a", trains=False)


def test_a_variable_of_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_TRAINER_MAX_STEPS", "3")
    with pytest.raises(ConfigurationError, match=r"PL_TRAINER_MAX_STEPS has no effect; --trainer\.max_steps is the"):
        check()


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("--trainer.gradient_clip_val=1", "vrft: trainer.gradient_clip_val: expected null, got 1; model.max_grad_norm"),
        ("--trainer.max_time={hour: 1}", "vrft: trainer: "),
        (
            callback(GradientAccumulationScheduler, scheduling="{0: 2}"),
            "AccumulationScheduler is not supported",
        ),
    ],
)
def test_a_run_is_refused_before_anything_is_written(
    argument: str, said: str, quick_fit: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(quick_fit(argument)) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert shown.count("\n") == 1
    assert not (tmp_path / "run").exists()


EARLY = "{class_path: EarlyStopping, init_args: {monitor: %s, patience: 1, min_delta: 9}}"


def test_lightnings_callbacks_work_in_epochs_without_a_logger(
    quick_fit: Command, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`EarlyStopping` ends the run after the second epoch of two batches, since no score improves by 9."""
    small = ["--data.batch_size=8", "--model.num_generations=2", "--model.max_completion_length=12"]
    small += ["--trainer.max_steps=-1", "--trainer.max_epochs=5", "--trainer.log_every_n_steps=2"]
    small += ["--trainer.val_check_interval=1.0", "--trainer.check_val_every_n_epoch=1", "--trainer.profiler=simple"]
    more = [f"--trainer.callbacks+={EARLY % 'val/reward'}", "--trainer.callbacks+=LearningRateMonitor"]
    more += ["--trainer.logger=false", "--trainer.detect_anomaly=true", "--trainer.deterministic=warn"]
    try:
        assert main(quick_fit(*small, *more)) == 0
    finally:
        torch.use_deterministic_algorithms(False)
    assert json.loads((tmp_path / "run/summary.json").read_text())["step"] == 4
    with next((tmp_path / "run/logs").rglob("metrics.csv")).open() as file:
        rows = [*csv.DictReader(file)]
    assert sum(bool(row["val/reward"]) for row in rows) == 3
    assert sum(bool(row["lr-AdamW"]) for row in rows) == 2
    assert sum(bool(row["train/reward"]) for row in rows) == 2
    assert "FIT Profiler Report" in caplog.text


def test_a_score_that_no_evaluation_has_ends_a_run_before_it_trains(
    quick_fit: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(quick_fit(f"--trainer.callbacks+={EARLY % 'val/accuracy'}")) == 2
    assert "EarlyStopping.monitor: expected a metric of training, train/NAME, or one of val/" in capsys.readouterr().err


def test_a_schedule_follows_epochs_and_resumes_at_their_end(quick_fit: Command, tmp_path: Path) -> None:
    """Two epochs of two batches; the first run ends with the first epoch."""
    small = ["--data.batch_size=8", "--model.num_generations=2", "--model.max_completion_length=8"]
    small += ["--model.lr_scheduler={class_path: StepLR, init_args: {step_size: 1, gamma: 0.5}}"]
    small += ["--model.lr_scheduler_interval=epoch", "--model.optimizer.lr=0.5", "--trainer.limit_val_batches=0"]
    assert main(quick_fit(CSV_ONLY, *small)) == 0
    assert main(quick_fit(CSV_ONLY, *small, "--trainer.max_steps=5", "--ckpt_path=last")) == 0
    rates: dict[int, float] = {}
    for path in sorted((tmp_path / "run/logs").rglob("metrics.csv")):
        with path.open() as file:
            trained = [row for row in csv.DictReader(file) if row["train/learning_rate"]]
        rates |= {int(row["step"]): float(row["train/learning_rate"]) for row in trained}
    assert rates == {0: 0.5, 1: 0.5, 2: 0.25, 3: 0.25, 4: 0.125}


def test_load_from_checkpoint_says_what_to_use_instead() -> None:
    with pytest.raises(ConfigurationError, match=r"pass it as ckpt_path to fit, .*vrft\.Predict"):
        RFT.load_from_checkpoint("last.ckpt", task=None)


def test_a_run_on_the_cpu_says_if_torch_could_use_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """E.g. because the driver is older than torch's build needs."""
    trainer = Trainer(accelerator="cpu", devices=1, logger=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert describe_devices(trainer) == ("device: cpu (torch is built for CUDA 13.0 and finds no GPU that it can use)")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert describe_devices(trainer) == "device: cpu"
