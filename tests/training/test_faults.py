"""Runs that are interrupted, killed or out of disk space: what is saved is whole, and the end is the same."""

from __future__ import annotations

import csv
import multiprocessing
import os
import re
import resource
import runpy
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from tests.helpers import CSV_ONLY, ROOT
from vrft.__main__ import main
from vrft.callbacks import checkpoint as run_checkpoint
from vrft.callbacks.graceful_stop import GracefulStop
from vrft.data import scenes
from vrft.loggers import CSVLogger
from vrft.training.checkpoint_io import AtomicCheckpointIO
from vrft.utils.files import hardlink, replace_link

Command = Callable[..., list[str]]
KILLS = SimpleNamespace(**runpy.run_path(str(ROOT / "benchmarks" / "kill_runs.py")))
STEPS = 6  # of two in an epoch
STATE = ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch", "the loader's position")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is left alone. Its data is in the folder beside it."""
    folder = tmp_path_factory.mktemp("runs")
    assert main(KILLS.arguments(folder / "whole", folder / "data", steps=STEPS)) == 0
    return folder / "whole"


@pytest.fixture
def like_whole(whole: Path, tmp_path: Path) -> Command:
    """The command of the same run in a folder of its own; more arguments may follow."""

    def command(*more: str) -> list[str]:
        return [*KILLS.arguments(tmp_path / "run", whole.parent / "data", steps=STEPS), *more]

    return command


def callback(name: str, **settings: object) -> str:
    text = ", ".join(f"{key}: {value}" for key, value in settings.items())
    return f"--trainer.callbacks+={{class_path: {__name__}.{name}, init_args: {{{text}}}}}"


class Sends(Callback):
    """Sends a signal to its own process in the middle of a step or of an evaluation."""

    def __init__(self, number: int, after: int, validation: bool = False) -> None:
        self.number, self.after, self.validation = number, after, validation

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.after and not self.validation:
            os.kill(os.getpid(), self.number)

    def on_validation_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.after and self.validation:
            os.kill(os.getpid(), self.number)


class SmallDisk(Callback):
    """No room for a checkpoint from one step on, until another."""

    def __init__(self, since: int, until: int) -> None:
        self.since, self.until = since, until

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        limit = 1_000_000 if self.since <= trainer.global_step < self.until else resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_ends_the_step_saves_and_says_how_to_go_on(
    name: str, whole: Path, like_whole: Command, tmp_path: Path
) -> None:
    number = signal.Signals[name]
    command = [sys.executable, "-m", "vrft", *like_whole()]
    run = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "run" / "transcripts.jsonl").exists():  # one step is done
        assert run.poll() is None
        time.sleep(0.01)
    run.send_signal(number)
    output, errors = run.communicate()
    assert run.returncode == 128 + number, errors
    assert f"{name}: stopping when this step is done" in errors
    assert f"stopped: {name} after step" in output
    assert not (tmp_path / "run" / "summary.json").exists()
    assert len(list((tmp_path / "run" / "evaluation").iterdir())) == 1  # of the base
    hint = next(line for line in output.splitlines() if line.startswith("to resume: "))
    words = shlex.split(hint.removeprefix("to resume: "))
    assert words[:3] == ["python", "-m", "vrft"]
    if name == "SIGTERM":
        assert main(words[3:]) == 0
        assert KILLS.differences(whole, tmp_path / "run") == []
        assert (tmp_path / "run" / "summary.json").exists()


def test_a_job_is_queued_again_after_sigusr1_and_handlers_are_restored(
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
    assert main(like_whole(callback("Sends", number=number, after=1))) == 128 + number
    assert (tmp_path / "asked").read_text().split()[:3] == ["requeue", "4711", "last.ckpt"]  # once it was saved
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)] == before


def test_a_signal_before_the_first_step_leaves_nothing_to_save(
    like_whole: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sends = callback("Sends", number=int(signal.SIGTERM), after=0, validation=True)
    assert main(like_whole(sends, "--data.eval_batch_size=2")) == 128 + signal.SIGTERM
    assert "SIGTERM before the first step, nothing to save" in capsys.readouterr().out
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


@pytest.mark.parametrize("step", [3, 4], ids=["in an epoch", "at its end"])
def test_a_signal_in_an_evaluation_on_the_way_leaves_the_training_as_it_would_be(
    step: int, whole: Path, like_whole: Command, tmp_path: Path
) -> None:
    sends = callback("Sends", number=int(signal.SIGINT), after=step, validation=True)
    more = [f"--trainer.val_check_interval={step}", "--data.eval_batch_size=2"]
    more += ["--checkpoint.every_n_train_steps=9"]  # so that the evaluation's step isn't saved before it
    assert main(like_whole(*more, sends)) == 128 + signal.SIGINT
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == step
    assert main(like_whole(*more, "--ckpt_path=last")) == 0
    assert not {*STATE} & {*KILLS.differences(whole, tmp_path / "run")}


class Crashes(Callback):
    """Ends a run in the middle of an evaluation, the checkpoint of whose step is written."""

    def on_validation_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 2:
            raise RuntimeError("the power is gone")


def test_an_evaluation_that_was_cut_off_is_made_by_the_continuation(
    whole: Path, like_whole: Command, tmp_path: Path
) -> None:
    often = "--trainer.val_check_interval=2"
    assert main(like_whole(often)) == 0
    alone = (tmp_path / "run").rename(tmp_path / "alone")
    with pytest.raises(RuntimeError, match="the power is gone"):
        main(like_whole(often, callback("Crashes")))
    assert main(like_whole(often, "--ckpt_path=last")) == 0
    assert KILLS.differences(alone, tmp_path / "run") == []
    assert sorted(KILLS.rows(tmp_path / "run")) == sorted(KILLS.rows(alone))
    evaluations = [sorted(path.name for path in (run / "evaluation").iterdir()) for run in (alone, tmp_path / "run")]
    assert evaluations == [["val-0", "val-2", "val-4", "val-6"]] * 2


def test_a_second_interrupt_quits_at_once() -> None:
    stop = GracefulStop()
    stop.quiet = True
    stop.note(signal.SIGTERM, None)
    stop.note(signal.SIGINT, None)
    with pytest.raises(KeyboardInterrupt):
        stop.note(signal.SIGINT, None)


def test_outside_the_main_thread_there_are_no_signals_and_no_error() -> None:
    trainer = SimpleNamespace(is_global_zero=True)
    before = signal.getsignal(signal.SIGTERM)
    with ThreadPoolExecutor() as threads:
        threads.submit(GracefulStop().on_train_start, trainer, None).result()  # type: ignore[arg-type]
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_run_made_longer_ends_like_one_that_was_as_long_from_the_start(
    whole: Path, like_whole: Command, tmp_path: Path
) -> None:
    assert main(like_whole("--trainer.max_steps=5")) == 0  # between two checkpoints
    assert main(like_whole("--ckpt_path=last")) == 0
    assert not {*STATE} & {*KILLS.differences(whole, tmp_path / "run")}


def test_killed_while_saving_while_training_and_after_a_step_it_ends_the_same(
    whole: Path, like_whole: Command, tmp_path: Path
) -> None:
    run, command = tmp_path / "run", like_whole()
    saves = (run / "checkpoints").glob
    instants: list[Callable[[], bool]] = [
        lambda: next(saves("*.partial"), None) is not None,  # the first checkpoint, or the link to it
        lambda: (run / "transcripts.jsonl").exists() and KILLS.rows(run).keys() >= {(2, "train/reward")},
        lambda: next(saves("step=6*"), None) is not None,  # the last one is written, but maybe not linked to
    ]
    for instant in instants:
        assert KILLS.kill_when(KILLS.start(KILLS.continuation(run, command)), instant)
    assert main(KILLS.continuation(run, command)) == 0
    assert KILLS.differences(whole, run) == []
    assert not list(saves("*.partial"))


def test_the_link_is_there_whenever_a_process_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new, link = (tmp_path / name for name in ("step=2.ckpt", "step=4.ckpt", "last.ckpt"))
    old.write_text("old")
    new.write_text("new")
    replace_link(link, old)

    def killed(self: Path, target: Path) -> None:
        assert link.readlink() == Path("step=2.ckpt")
        assert self.readlink() == Path("step=4.ckpt")  # beside it, complete
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            replace_link(link, new)
    assert link.read_text() == "old"
    replace_link(link, new)
    assert link.read_text() == "new"
    assert sorted(tmp_path.iterdir()) == sorted([old, new, link])


def test_links_are_copies_where_there_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Path, target: str) -> None:
        raise OSError

    monkeypatch.setattr(Path, "symlink_to", refused)
    (tmp_path / "step=2.ckpt").write_text("content")
    replace_link(tmp_path / "last.ckpt", tmp_path / "step=2.ckpt")
    assert not (tmp_path / "last.ckpt").is_symlink()
    assert (tmp_path / "last.ckpt").read_text() == "content"


@pytest.mark.parametrize("links", [True, False])
def test_a_second_name_stays_when_the_first_is_given_away(
    links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: Path, target: Path) -> None:
        raise OSError

    if not links:
        monkeypatch.setattr(Path, "hardlink_to", refused)
    last, best = tmp_path / "last.ckpt", tmp_path / "best.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, last)
    for _ in range(2):  # the second time, it has it already
        hardlink(last, best)
        assert best.samefile(last) == links
    AtomicCheckpointIO().save_checkpoint({"step": 2}, last)
    assert [torch.load(path, weights_only=True)["step"] for path in (last, best)] == [2, 1]
    assert sorted(tmp_path.iterdir()) == [best, last]


def test_a_link_that_a_killed_run_left_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "step=2.ckpt").write_text("good")
    (tmp_path / "last.ckpt.partial").symlink_to("step=2.ckpt")
    AtomicCheckpointIO().save_checkpoint({"a": 1}, tmp_path / "last.ckpt")
    assert (tmp_path / "step=2.ckpt").read_text() == "good"
    assert torch.load(tmp_path / "last.ckpt", weights_only=True) == {"a": 1}


def test_old_checkpoints_go_when_the_link_points_at_the_new_one(
    quick_fit: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, seen = tmp_path / "run" / "checkpoints", []

    def watched(link: Path, target: Path) -> None:
        seen.append((link.is_symlink() and link.resolve().name, sorted(path.name for path in folder.glob("step*"))))
        replace_link(link, target)

    monkeypatch.setattr(run_checkpoint, "replace_link", watched)
    folder.mkdir(parents=True)
    (folder / "step=9.ckpt.partial").write_text("of a killed run")
    assert main(quick_fit(CSV_ONLY, "--checkpoint.every_n_train_steps=1")) == 0
    assert seen == [(False, ["step=1.ckpt"]), ("step=1.ckpt", ["step=1.ckpt", "step=2.ckpt"])]
    assert sorted(path.name for path in folder.iterdir()) == ["last.ckpt", "step=2.ckpt"]


def test_a_full_disk_does_not_end_a_run(whole: Path, like_whole: Command, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"no checkpoint of step 4: .*: '.*step=4\.ckpt'; last good one: .*step=2"):
        assert main(like_whole(callback("SmallDisk", since=3, until=5))) == 0
    assert KILLS.differences(whole, tmp_path / "run") == []  # the checkpoint of step 6 is there
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["last.ckpt", "step=6.ckpt"]


class NoRoom(Callback):
    """A disk without room for anything, in an evaluation after some steps or from the last checkpoint on."""

    def __init__(self, when: str) -> None:
        self.when = when

    def on_validation_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        if self.when == "evaluation" and trainer.global_step == 3:
            self.limit(0)

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        self.limit(resource.RLIM_INFINITY)

    def on_train_end(self, *_: Any) -> None:
        if self.when == "end":
            self.limit(0)

    def limit(self, size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def test_no_room_for_an_evaluation_costs_its_files_alone(whole: Path, like_whole: Command, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"evaluation/val-3: files of this evaluation are missing: .*File too large"):
        assert main(like_whole("--trainer.val_check_interval=3", callback("NoRoom", when="evaluation"))) == 0
    assert not {*STATE} & {*KILLS.differences(whole, tmp_path / "run")}
    assert (3 - 1, "val/mIoU") in KILLS.rows(tmp_path / "run")


def test_no_room_at_the_end_is_one_line(
    like_whole: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        assert main(like_whole(callback("NoRoom", when="end"), "--trainer.limit_val_batches=0")) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("vrft: can't write ")
    assert "File too large" in said
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


def test_no_room_for_the_last_checkpoint_is_an_error(
    whole: Path, like_whole: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.warns(UserWarning, match="no checkpoint of step 6: .*; last good one: .*step=4"):
        assert main(like_whole(callback("SmallDisk", since=5, until=9))) == 1
    assert "stopped: the last checkpoint can't be written" in capsys.readouterr().out
    assert not (tmp_path / "run" / "summary.json").exists()
    assert main(like_whole("--ckpt_path=last")) == 0  # there is room again
    assert KILLS.differences(whole, tmp_path / "run") == []


def test_a_folder_that_cannot_be_written_is_said_first(
    quick_fit: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("no folder")
    assert main(quick_fit(f"--run_dir={tmp_path}/file/run")) == 2
    assert capsys.readouterr().err == f"vrft: run_dir: can't write to {tmp_path}/file/run: Not a directory\n"
    assert not (tmp_path / "train.json").exists()


class KillsWorkers(Callback):
    """Kills a process that reads data, as a system short of memory does: in one step, or in an evaluation."""

    def __init__(self, when: str) -> None:
        self.when = when

    def kill(self, when: str) -> None:
        if self.when == when:
            self.when = "done"
            os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
            time.sleep(0.2)  # so that it is dead before the step goes on

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 2:
            self.kill("step")

    def on_validation_batch_start(self, *_: Any) -> None:
        self.kill("evaluation")


@pytest.mark.parametrize("when", ["step", "evaluation"])
def test_other_workers_take_over_where_one_died(when: str, whole: Path, like_whole: Command, tmp_path: Path) -> None:
    more = ["--data.num_workers=2", "--data.eval_batch_size=2", callback("KillsWorkers", when=when)]
    with pytest.warns(UserWarning, match="a DataLoader worker died, restarting"):
        assert main(like_whole(*more)) == 0
    assert not {*STATE} & {*KILLS.differences(whole, tmp_path / "run")}
    with (tmp_path / "run" / "logs" / "version_0" / "metrics.csv").open() as file:
        counted = [float(row["train/dead_workers"]) for row in csv.DictReader(file) if row["train/dead_workers"]]
    assert counted[-1] == (when == "step")


def test_workers_that_all_die_end_the_run_in_one_line(
    like_whole: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read = scenes.SceneData.train_set

    def deadly(self: Any) -> Any:
        samples = read(self)
        monkeypatch.setattr(type(samples), "__getitem__", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        return samples

    monkeypatch.setattr(scenes.SceneData, "train_set", deadly)
    with pytest.warns(UserWarning, match="restarting the workers"):
        assert main(like_whole("--data.num_workers=1", "--trainer.limit_val_batches=0")) == 2
    assert "vrft: data.num_workers: 3 workers died in a row" in capsys.readouterr().err


def test_a_full_disk_keeps_the_rows_of_the_log_waiting(tmp_path: Path) -> None:
    logger = CSVLogger(str(tmp_path), name="logs")
    path = tmp_path / "logs" / "version_0" / "metrics.csv"
    rows = [{"a": 1.0}, {"a": 2.0, "b": 0.1}, {"a": 3.0, "b": 0.2, "long" * 20: 1.0}]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for step, row in enumerate(rows):
        logger.log_metrics(row, step)
        written = path.read_bytes() if path.exists() else b""
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(written) + 5, before[1]))  # in the middle of a row
        try:
            with pytest.warns(UserWarning, match="the last 1 rows are not written yet: .*File too large"):
                logger.save()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert (path.read_bytes() if path.exists() else b"") == written
        logger.save()
    with path.open() as file:
        read = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
    assert read == [{**row, "step": step} for step, row in enumerate(rows)]


def test_a_prompt_without_room_for_a_completion_is_named(
    like_whole: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(like_whole("--model.max_completion_length=2040")) == 2
    said = capsys.readouterr().err
    assert re.search(r"sample 0 \(image \d+, '.+'\): \d+ tokens of prompt and 2040 of completion", said)
