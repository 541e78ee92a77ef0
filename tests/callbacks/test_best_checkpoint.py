"""Checkpoints kept by a held-out score of their own weights, also in interrupted runs."""

from __future__ import annotations

import json
import os
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer

from tests.helpers import Command, callback
from tests.helpers.kills import KILLS
from vrft.__main__ import main
from vrft.callbacks import safe_checkpoint

STEPS = 5  # two per epoch
EVALUATED = (2, 4, 5)  # the last evaluation follows training, which ends between two evaluations
STATE = {"state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch", "the loader's position"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def command(folder: Path) -> Command:
    """Return a function that builds the command of a run with falling scores, which `min` takes as improvements."""

    def command(name: str, *more: str) -> list[str]:
        return [
            *KILLS.arguments(folder / name, folder / "data", steps=STEPS),
            *("--model.optimizer.lr=0.008", "--trainer.val_check_interval=2", "--checkpoint.every_n_train_steps=3"),
            *("--checkpoint.monitor=val/mIoU", "--checkpoint.mode=min", "--checkpoint.save_top_k=2"),
            *("--checkpoint.filename={step}-{val/mIoU:.6f}", "--checkpoint.auto_insert_metric_name=false"),
            *more,
        ]

    return command


@pytest.fixture(scope="module")
def whole(folder: Path, command: Command) -> Path:
    """Make an uninterrupted run and return its folder."""
    assert main(command("whole")) == 0
    judged = scores(folder / "whole")
    assert list(judged) == [*EVALUATED]
    assert judged[2] > judged[4] > judged[5]
    return folder / "whole"


def scores(run: Path, name: str = "val/mIoU") -> dict[int, float]:
    """Return the logged scores of a run's evaluations by optimizer step, without the base's."""
    found = {step: float(value) for (step, key), value in KILLS.rows(run).items() if key == name and step > 0}
    return {step if step == STEPS else step + 1: value for step, value in sorted(found.items())}


def names(run: Path, *steps: int) -> list[str]:
    return [f"{step}-{scores(run)[step]:.6f}.ckpt" for step in steps]


def kept(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir() if path.name not in ("last.ckpt", "best.ckpt"))


def found_by_test(run: Path) -> list[str]:
    return [f"{float(value):.6f}" for (_, key), value in KILLS.rows(run).items() if key == "test/mIoU"]


class Crashes(Callback):
    """Ends a run in the middle of the evaluation of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_validation_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise RuntimeError("the power is gone")


class NoRoom(Callback):
    """Leaves no disk space for the checkpoint of one step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        limit = 1_000_000 if trainer.global_step == self.step - 1 else resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def test_a_kept_checkpoint_has_the_score_in_its_name(whole: Path, folder: Path, command: Command) -> None:
    """The test of the best one, below, is that of step 5."""
    fourth, fifth = kept(whole)
    assert [fourth, fifth] == names(whole, 4, 5)
    assert main(["test", *command("test-4")[1:], f"--ckpt_path={whole}/checkpoints/{fourth}"]) == 0
    assert found_by_test(folder / "test-4") == [fourth[2:-5]]


def test_the_best_checkpoint_has_a_separate_name(whole: Path, folder: Path, command: Command) -> None:
    assert (whole / "checkpoints" / "best.ckpt").resolve().name == names(whole, 5)[0]
    best = ["--ckpt_path=best", f"--checkpoint.dirpath={whole}/checkpoints"]
    assert main(["test", *command("test-best")[1:], *best]) == 0
    assert found_by_test(folder / "test-best") == [names(whole, 5)[0][2:-5]]
    assert main(["export", str(whole), "--ckpt=best", f"--output={folder}/exported"]) == 0


def test_an_extended_run_keeps_all_scored_checkpoints(
    whole: Path, folder: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--checkpoint.save_top_k=-1", "--checkpoint.every_n_train_steps=1"]
    assert main(command("longer", *more, "--trainer.max_steps=4")) == 0  # the end of an epoch
    assert main(command("longer", *more, "--ckpt_path=last")) == 0
    assert KILLS.differences(whole, folder / "longer") == []
    assert kept(folder / "longer") == names(whole, *EVALUATED)
    path = os.path.relpath(folder / "longer" / "checkpoints" / kept(folder / "longer")[-1])
    said = capsys.readouterr().out.partition(f"best by val/mIoU: {path} (")[2]
    assert float(said.partition(")")[0]) == pytest.approx(scores(whole)[5], abs=6e-5)
    best = json.loads((folder / "longer" / "summary.json").read_text())["best"]
    found = best.pop("scores")
    score = pytest.approx(scores(whole)[5], abs=1e-6)
    assert best == {"checkpoint": path, "metric": "val/mIoU", "score": score, "step": 5}
    assert found["mIoU"] == score
    evaluated = json.loads((folder / "longer" / "evaluation" / "val-5" / "scores.json").read_text())
    assert found == evaluated


def test_a_moved_and_extended_run_with_a_smaller_top_k_remembers_its_last_evaluation(
    whole: Path, folder: Path, command: Command
) -> None:
    shutil.copytree(whole, folder / "moved", symlinks=True)
    no_better = ["--model.optimizer.lr=0", "--trainer.max_steps=6", "--checkpoint.save_top_k=1"]
    assert main(command("moved", *no_better, "--ckpt_path=last")) == 0
    assert kept(folder / "moved") == names(whole, 5)  # the checkpoint of a step precedes its score
    checkpoints = folder / "moved" / "checkpoints"
    assert (checkpoints / "best.ckpt").resolve() == checkpoints.resolve() / names(whole, 5)[0]


def test_the_evaluation_at_the_end_of_the_last_epoch_is_remembered(whole: Path, folder: Path, command: Command) -> None:
    more = ["--trainer.max_steps=-1", "--trainer.val_check_interval=5", "--checkpoint.every_n_train_steps=2"]
    more += ["--checkpoint.save_top_k=1"]
    assert main(command("epochs-end", *more, "--trainer.max_epochs=1")) == 0
    assert main(command("epochs-end", *more, "--trainer.max_epochs=2", "--ckpt_path=last")) == 0
    assert kept(folder / "epochs-end") == names(whole, 4)  # step 2 was scored, but worse


def test_the_best_checkpoint_exists_whenever_a_run_is_killed(
    whole: Path, folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    links, link = [], safe_checkpoint.replace_link

    def killed(name: Path, target: Path) -> None:
        links.append(target)
        if len(links) == 2:
            raise RuntimeError("the power is gone")
        link(name, target)

    monkeypatch.setattr(safe_checkpoint, "replace_link", killed)
    assert main(command("killed", "--checkpoint.save_top_k=1")) == 1
    assert (folder / "killed" / "checkpoints" / "best.ckpt").resolve().name == names(whole, 2)[0]
    assert (folder / "killed" / "checkpoints" / "best.ckpt").exists()
    assert main(command("killed", "--checkpoint.save_top_k=1", "--ckpt_path=last")) == 0
    assert kept(folder / "killed") == names(whole, 5)


def test_interrupted_evaluations_score_checkpoints_when_the_run_resumes(
    whole: Path, folder: Path, command: Command
) -> None:
    for step, before in ((2, []), (4, names(whole, 2)), (5, names(whole, 2, 4))):
        more = ["--ckpt_path=last"] if before else []
        assert main(command("cut-off", *more, callback(Crashes, step=step))) == 1
        assert kept(folder / "cut-off") == before
    assert main(command("cut-off", "--ckpt_path=last")) == 0  # nothing is left to train
    assert KILLS.differences(whole, folder / "cut-off") == []
    assert kept(folder / "cut-off") == names(whole, 4, 5)


def test_a_run_can_resume_from_a_kept_checkpoint(whole: Path, folder: Path, command: Command) -> None:
    assert main(command("other", f"--ckpt_path={whole}/checkpoints/{names(whole, 4)[0]}")) == 0
    assert not STATE & {*KILLS.differences(whole, folder / "other")}
    assert kept(folder / "other") == names(whole, 4, 5)


def test_an_unwritten_checkpoint_is_not_scored(whole: Path, folder: Path, command: Command) -> None:
    with pytest.warns(UserWarning, match="no checkpoint of step 4: "):
        assert main(command("no-room", callback(NoRoom, step=4))) == 0
    assert KILLS.differences(whole, folder / "no-room") == []
    assert kept(folder / "no-room") == names(whole, 2, 5)


def test_a_resumed_run_can_start_to_monitor_a_score(whole: Path, folder: Path, command: Command) -> None:
    plain = ["--checkpoint.monitor=null", "--checkpoint.save_top_k=1", "--checkpoint.filename=of-{step}"]
    assert main(command("later", *plain, "--checkpoint.every_n_train_steps=2", "--trainer.max_steps=4")) == 0
    assert kept(folder / "later") == ["of-4.ckpt"]
    assert main(command("later", "--ckpt_path=last")) == 0
    assert KILLS.differences(whole, folder / "later") == []
    assert kept(folder / "later") == [*names(whole, 4, 5), "of-4.ckpt"]


def test_evaluations_at_the_ends_of_epochs_score_checkpoints(folder: Path, command: Command) -> None:
    ends = ["--trainer.check_val_every_n_epoch=1", "--trainer.val_check_interval=1.0", "--trainer.max_steps=4"]
    assert main(command("epochs", *ends)) == 0
    assert kept(folder / "epochs") == names(folder / "epochs", 2, 4)


def test_a_monitored_training_metric_is_that_of_the_saved_step(folder: Path, command: Command) -> None:
    more = ["--checkpoint.monitor=train/reward", "--checkpoint.filename={step}-{train/reward:.6f}"]
    assert main(command("training", *more, "--checkpoint.every_n_train_steps=1", "--trainer.max_steps=3")) == 0
    rewards = {
        step + 1: float(value)
        for (step, key), value in KILLS.rows(folder / "training").items()
        if key == "train/reward"
    }
    worst = sorted(rewards, key=lambda step: rewards[step])[:2]
    assert kept(folder / "training") == sorted(f"{step}-{rewards[step]:.6f}.ckpt" for step in worst)


def test_an_unknown_score_is_reported_before_training(
    folder: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command("misspelt", "--checkpoint.monitor=val/mIuO", "--trainer.max_steps=1")) == 2
    error = capsys.readouterr().err
    assert "vrft: checkpoint.monitor: this evaluation has no val/mIuO; it has " in error
    assert "val/mIoU" in error
    assert not (folder / "misspelt" / "checkpoints" / "last.ckpt").exists()
