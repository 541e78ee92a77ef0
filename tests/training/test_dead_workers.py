"""Data-loader workers that die, and prompts that are too long."""

from __future__ import annotations

import csv
import multiprocessing
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, Trainer
from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling

from tests.helpers import Command, callback
from tests.helpers.kills import KILLS, STATE
from vrft.__main__ import main
from vrft.data.datasets import scenes


class KillsWorkers(Callback):
    """Kills a data-loader worker during a step or an evaluation, as the kernel does when memory runs out."""

    def __init__(self, when: str) -> None:
        self.when = when

    def setup(self, *_: Any, **__: Any) -> None:
        self.others = multiprocessing.active_children()  # perhaps workers of other tests

    def kill(self, when: str) -> None:
        if self.when == when:
            self.when = "done"
            worker = next(child for child in multiprocessing.active_children() if child not in self.others)
            os.kill(worker.pid or 0, signal.SIGKILL)
            worker.join(60)  # the worker has to be dead before the step continues

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 2:
            self.kill("step")

    def on_validation_batch_start(self, *_: Any) -> None:
        self.kill("evaluation")


@pytest.fixture
def torch_handler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let torch install its handler for SIGCHLD, which raises, as it does for the first loader of a user's callback."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", False)  # torch installs it once in a process
    list(DataLoader([0], num_workers=1))  # type: ignore[arg-type]
    installed = signal.getsignal(signal.SIGCHLD)
    assert callable(installed)
    yield
    assert signal.signal(signal.SIGCHLD, before) is installed


@pytest.mark.usefixtures("torch_handler")
@pytest.mark.parametrize("when", ["step", "evaluation"])
def test_workers_restart_where_one_died(when: str, whole: Path, like_whole: Command, tmp_path: Path) -> None:
    more = ["--data.num_workers=2", "--data.eval_batch_size=2", callback(KillsWorkers, when=when)]
    with pytest.warns(UserWarning, match="a DataLoader worker died, restarting"):
        assert main(like_whole(*more)) == 0
    assert not {*STATE} & {*KILLS.differences(whole, tmp_path / "run")}
    with (tmp_path / "run" / "logs" / "version_0" / "metrics.csv").open() as file:
        counted = [float(row["train/dead_workers"]) for row in csv.DictReader(file) if row["train/dead_workers"]]
    assert counted[-1] == (when == "step")


def test_workers_that_keep_dying_end_the_run_in_one_line(
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


def test_a_prompt_without_room_for_a_completion_is_named(
    like_whole: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(like_whole("--model.max_completion_length=2040")) == 2
    said = capsys.readouterr().err
    assert re.search(r"sample 0 \(image \d+, '.+'\): \d+ tokens of prompt and 2040 of completion", said)
