"""Runs that are out of disk space."""

from __future__ import annotations

import csv
import resource
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer

from tests.helpers import Command, callback
from tests.helpers.kills import KILLS, STATE
from vrft.__main__ import main
from vrft.loggers import CSVLogger


class SmallDisk(Callback):
    """Leaves no disk space for a checkpoint from step `since` until step `until`."""

    def __init__(self, since: int, until: int) -> None:
        self.since, self.until = since, until

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        limit = 1_000_000 if self.since <= trainer.global_step < self.until else resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def test_a_full_disk_does_not_end_a_run(whole: Path, like_whole: Command, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"no checkpoint of step 4: .*: '.*step=4\.ckpt'; last good one: .*step=2"):
        assert main(like_whole(callback(SmallDisk, since=3, until=5))) == 0
    assert KILLS.differences(whole, tmp_path / "run") == []  # the checkpoint of step 6 is written
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["last.ckpt", "step=6.ckpt"]


class NoRoom(Callback):
    """Leaves no disk space at all, during an evaluation or from the last checkpoint on."""

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


def test_no_room_for_an_evaluation_only_costs_its_files(whole: Path, like_whole: Command, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"evaluation/val-3: files of this evaluation are missing: .*File too large"):
        assert main(like_whole("--trainer.val_check_interval=3", callback(NoRoom, when="evaluation"))) == 0
    assert not {*STATE} & {*KILLS.differences(whole, tmp_path / "run")}
    assert (3 - 1, "val/mIoU") in KILLS.rows(tmp_path / "run")


def test_no_room_at_the_end_is_one_line(
    like_whole: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        assert main(like_whole(callback(NoRoom, when="end"), "--trainer.limit_val_batches=0")) == 1
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
        assert main(like_whole(callback(SmallDisk, since=5, until=9))) == 1
    assert "stopped: the last checkpoint can't be written" in capsys.readouterr().out
    assert not (tmp_path / "run" / "summary.json").exists()
    assert main(like_whole("--ckpt_path=last")) == 0  # there is space again
    assert KILLS.differences(whole, tmp_path / "run") == []


def test_a_folder_that_cannot_be_written_is_reported_first(
    quick_fit: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("no folder")
    assert main(quick_fit(f"--run_dir={tmp_path}/file/run")) == 2
    assert capsys.readouterr().err == f"vrft: run_dir: can't write to {tmp_path}/file/run: Not a directory\n"
    assert not (tmp_path / "train.json").exists()


def test_rows_of_the_log_wait_until_the_disk_has_space(tmp_path: Path) -> None:
    logger = CSVLogger(str(tmp_path), name="logs")
    path = tmp_path / "logs" / "version_0" / "metrics.csv"
    rows = [{"a": 1.0}, {"a": 2.0, "b": 0.1}, {"a": 3.0, "b": 0.2, "long" * 20: 1.0}]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for step, row in enumerate(rows):
        logger.log_metrics(row, step)
        written = path.read_bytes() if path.exists() else b""
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(written) + 5, before[1]))  # in the middle of a row
        try:
            with pytest.warns(UserWarning, match="the last 1 row could not be written yet: .*File too large"):
                logger.save()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert (path.read_bytes() if path.exists() else b"") == written
        logger.save()
    with path.open() as file:
        read = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
    assert read == [{**row, "step": step} for step, row in enumerate(rows)]
