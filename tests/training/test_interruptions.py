"""Interrupted and killed runs: saved files are complete, and the resumed run ends like the uninterrupted one."""

from __future__ import annotations

import os
import shlex
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any
from unittest.mock import patch

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from tests.helpers import UNJUDGED, Command, callback
from tests.helpers.forks import Fork, fork_vrft
from tests.helpers.kills import KILLS, STATE, Sends, Waits
from vrft.__main__ import main
from vrft.callbacks.graceful_stop import GracefulStop
from vrft.training.trainer import Stopped


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_finishes_the_step_saves_and_prints_how_to_resume(
    name: str, whole: Path, like_whole: Command, tmp_path: Path
) -> None:
    number = signal.Signals[name]
    waiting = tmp_path / "waiting"
    run = fork_vrft(like_whole(callback(Waits, file=str(waiting))), tmp_path / "output")
    while not waiting.exists():
        assert run.poll() is None
        time.sleep(0.01)
    run.send_signal(number)
    waiting.unlink()
    assert run.wait() == 128 + number
    output = run.output.read_text()
    assert f"{name}: stopping when this step is done" in output
    assert f"stopped: {name} after step 2" in output
    assert not (tmp_path / "run" / "summary.json").exists()
    assert len(list((tmp_path / "run" / "evaluation").iterdir())) == 1  # the base's evaluation
    hint = next(line for line in output.splitlines() if line.startswith("to resume: "))
    words = shlex.split(hint.removeprefix("to resume: "))
    assert words[:3] == ["python", "-m", "vrft"]
    if name == "SIGTERM":
        assert main([word for word in words[3:] if "Waits" not in word]) == 0
        assert KILLS.differences(whole, tmp_path / "run") == []
        assert (tmp_path / "run" / "summary.json").exists()


def test_a_job_is_requeued_after_sigusr1_and_handlers_are_restored(
    like_whole: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\nls {tmp_path}/run/checkpoints >> {tmp_path}/asked\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)]
    number = int(signal.SIGUSR1)
    assert main(like_whole(UNJUDGED, callback(Sends, number=number, after=1))) == 128 + number
    assert (tmp_path / "asked").read_text().split()[:3] == ["requeue", "4711", "last.ckpt"]  # requeued after saving
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)] == before


def test_a_signal_before_the_first_step_leaves_nothing_to_save(
    like_whole: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sends = callback(Sends, number=int(signal.SIGTERM), after=0, validation=True)
    assert main(like_whole(sends, "--data.eval_batch_size=2", "--trainer.limit_val_batches=2")) == 128 + signal.SIGTERM
    assert "SIGTERM before the first step, nothing to save" in capsys.readouterr().out
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


@pytest.mark.parametrize("step", [3, 4], ids=["in an epoch", "at its end"])
def test_a_signal_in_an_evaluation_during_training_does_not_change_the_training(
    step: int, whole: Path, like_whole: Command, tmp_path: Path
) -> None:
    sends = callback(Sends, number=int(signal.SIGINT), after=step, validation=True)
    more = [f"--trainer.val_check_interval={step}", "--data.eval_batch_size=2", "--trainer.limit_val_batches=2"]
    more += ["--checkpoint.every_n_train_steps=9"]  # no checkpoint before the evaluation
    assert main(like_whole(*more, sends)) == 128 + signal.SIGINT
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == step
    assert main(like_whole(*more, "--ckpt_path=last")) == 0
    assert not {*STATE} & {*KILLS.differences(whole, tmp_path / "run")}


class Crashes(Callback):
    """Ends a run in the middle of an evaluation, after the checkpoint of its step."""

    def on_validation_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 2:
            raise RuntimeError("the power is gone")


def test_a_resumed_run_repeats_an_interrupted_evaluation(whole: Path, like_whole: Command, tmp_path: Path) -> None:
    often = "--trainer.val_check_interval=2"
    assert main(like_whole(often)) == 0
    alone = (tmp_path / "run").rename(tmp_path / "alone")
    assert main(like_whole(often, callback(Crashes))) == 1
    assert main(like_whole(often, "--ckpt_path=last")) == 0
    assert KILLS.differences(alone, tmp_path / "run") == []
    assert sorted(KILLS.rows(tmp_path / "run")) == sorted(KILLS.rows(alone))
    evaluations = [sorted(path.name for path in (run / "evaluation").iterdir()) for run in (alone, tmp_path / "run")]
    assert evaluations == [["val-0", "val-2", "val-4", "val-6"]] * 2


@pytest.mark.parametrize("between", [[], [signal.SIGTERM], [signal.SIGUSR1, signal.SIGTERM]])
def test_a_second_interrupt_quits_at_once(between: list[int], capfd: pytest.CaptureFixture[str]) -> None:
    stop = GracefulStop()
    for number in (signal.SIGTERM, signal.SIGINT, *between):
        stop.record(number, None)
    with pytest.raises(KeyboardInterrupt):
        stop.record(signal.SIGINT, None)
    assert capfd.readouterr().err.count("a second Ctrl-C quits at once") == 2 + len(between)


def test_an_interrupted_evaluation_brings_back_what_has_left_the_gpu_before_it_saves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It lies in buffers of page-locked memory, which torch would save whole."""
    done: list[str] = []
    monkeypatch.setattr("vrft.callbacks.graceful_stop.vision_trainer", lambda trainer: trainer)
    monkeypatch.setattr("vrft.callbacks.graceful_stop.vision_module", lambda module: module)
    checkpoint = SimpleNamespace(save_last_step=lambda _: done.append("save") is None)
    monkeypatch.setattr("vrft.callbacks.graceful_stop.RunCheckpoint.of", lambda _: checkpoint)
    trainer: Any = SimpleNamespace(
        strategy=SimpleNamespace(root_device="cpu", reduce=lambda received, reduce_op: received),
        lightning_module=SimpleNamespace(rollouts=SimpleNamespace(release=lambda: done.append("release"))),
        stopped=None,
        global_step=3,
        state=SimpleNamespace(fn=TrainerFn.FITTING),
        stop=lambda reason, exit_code: done.append(f"stop {exit_code}"),
    )
    stop = GracefulStop()
    stop.received = signal.SIGTERM
    with pytest.raises(Stopped):
        stop.on_validation_batch_end(trainer)
    assert done == ["release", "save", f"stop {128 + signal.SIGTERM}"]


def test_a_signal_during_the_installation_of_handlers_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = GracefulStop()
    monkeypatch.setattr(signal, "signal", lambda number, handler: handler(number, None))
    monkeypatch.setattr("vrft.callbacks.graceful_stop.SIGNALS", (signal.SIGTERM,))
    module = SimpleNamespace(rollouts=None)
    monkeypatch.setattr("vrft.callbacks.graceful_stop.vision_module", lambda _: module)
    stop.on_train_start(SimpleNamespace(is_global_zero=True), module)  # type: ignore[arg-type]
    assert stop.received == signal.SIGTERM


def test_outside_the_main_thread_signals_are_ignored_without_an_error() -> None:
    trainer = SimpleNamespace(is_global_zero=True)
    before = signal.getsignal(signal.SIGTERM)
    with ThreadPoolExecutor() as threads:
        threads.submit(GracefulStop().on_train_start, trainer, None).result()  # type: ignore[arg-type]
    assert signal.getsignal(signal.SIGTERM) == before


def test_an_extended_run_ends_like_one_of_that_length_from_the_start(
    whole: Path, like_whole: Command, tmp_path: Path
) -> None:
    assert main(like_whole(UNJUDGED, "--trainer.max_steps=5")) == 0  # between two checkpoints
    assert main(like_whole(UNJUDGED, "--ckpt_path=last")) == 0
    assert not {*STATE} & {*KILLS.differences(whole, tmp_path / "run")}


def save_half(command: list[str]) -> int:
    """Run a command that stops in the middle of writing its first checkpoint."""

    def half(_: object, file: IO[bytes]) -> None:
        file.write(b"half")
        file.flush()
        time.sleep(600)

    with patch("vrft.training.checkpoint_io.torch.save", half):
        return main(command)


def test_a_run_killed_while_saving_while_training_and_after_a_step_ends_the_same(
    whole: Path, like_whole: Command, tmp_path: Path
) -> None:
    run, command = tmp_path / "run", like_whole()
    saves = (run / "checkpoints").glob
    process = Fork(save_half, command, output=tmp_path / "output")
    assert KILLS.kill_when(process, lambda: any(path.stat().st_size for path in saves("*.partial")))
    instants: list[Callable[[], bool]] = [
        lambda: (run / "transcripts.jsonl").exists() and KILLS.rows(run).keys() >= {(2, "train/reward")},
        lambda: next(saves("step=6*"), None) is not None,  # the last checkpoint is written, perhaps without its link
    ]
    for instant in instants:
        process = fork_vrft(KILLS.continuation(run, command), tmp_path / "output")
        assert KILLS.kill_when(process, instant), process.output.read_text()
    assert main(KILLS.continuation(run, command)) == 0
    assert KILLS.differences(whole, run) == []
    assert not list(saves("*.partial"))
