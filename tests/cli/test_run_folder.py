"""Folders of runs: chosen after resolution, one per run, locked while it writes, and never left behind empty."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from lightning.pytorch.utilities import rank_zero_only

from tests.helpers import Command
from vrft.__main__ import main
from vrft.cli.run_folder import INHERITED, LAUNCH, LOCK, RunFolder
from vrft.errors import ConfigurationError


def choose(folder: RunFolder, requested: Path, command: str = "fit", resumes: bool = False, num_nodes: int = 1) -> Path:
    return folder.choose(command, requested, resumes=resumes, configs=[], num_nodes=num_nodes)


def finish(run: Path) -> None:
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.yaml").write_text("{}")


def test_runs_at_the_same_time_have_folders_of_their_own(tmp_path: Path) -> None:
    requested = tmp_path / "runs" / "a"
    with RunFolder() as first, RunFolder() as second:
        assert choose(first, requested) == requested
        assert choose(second, requested) == tmp_path / "runs" / "a-2"
    with RunFolder() as third:  # both ended before they wrote anything
        assert choose(third, requested) == requested
        finish(requested)
        with pytest.raises(ConfigurationError, match=f"another process writes to {requested}; wait"):
            choose(RunFolder(), requested, resumes=True)
        assert choose(RunFolder(), requested, "validate") == requested
        with RunFolder() as fourth:
            assert choose(fourth, requested) == tmp_path / "runs" / "a-2"
    with RunFolder() as resumed:
        assert choose(resumed, requested, resumes=True) == requested


def test_threads_that_start_together_never_share(tmp_path: Path) -> None:
    folders = [RunFolder() for _ in range(6)]
    chosen: list[Path] = []
    threads = [threading.Thread(target=lambda f=f: chosen.append(choose(f, tmp_path / "a"))) for f in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({*chosen}) == 6
    for folder in folders:
        folder.__exit__(None)


def test_ranks_find_the_folder_that_rank_zero_chose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requested = tmp_path / "a"
    finish(requested)
    (requested / LAUNCH).write_text("")  # of a launch that was killed
    (tmp_path / "a-2").mkdir()
    monkeypatch.setenv("MASTER_PORT", "4711")
    with RunFolder() as zero:
        chosen = choose(zero, requested)
        assert chosen == tmp_path / "a-2"
        monkeypatch.setattr(rank_zero_only, "rank", 1)
        assert choose(RunFolder(), requested) == chosen  # started by Lightning: it inherits the choice
        del os.environ[INHERITED]
        assert choose(RunFolder(), requested) == chosen  # started by a launcher
        monkeypatch.setattr("vrft.cli.run_folder.RANK_ZERO_SECONDS", 0.1)
        monkeypatch.setenv("MASTER_PORT", "4712")
        with pytest.raises(ConfigurationError, match="rank 0 has chosen no folder"):
            choose(RunFolder(), requested)
    assert sorted(path.name for path in chosen.iterdir()) == [LOCK]


def test_ranks_wait_for_a_rank_zero_that_starts_minutes_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds, zero = [0.0], RunFolder()

    def sleep(_: float) -> None:
        seconds[0] += 30
        if seconds[0] == 300:
            monkeypatch.setattr(rank_zero_only, "rank", 0)
            choose(zero, tmp_path / "a")
            del os.environ[INHERITED]

    monkeypatch.setattr("vrft.cli.run_folder.time", SimpleNamespace(monotonic=lambda: seconds[0], sleep=sleep))
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    with zero:
        assert choose(RunFolder(), tmp_path / "a") == tmp_path / "a"


@pytest.mark.parametrize("variable", ["NODE_RANK", "GROUP_RANK"])
def test_other_machines_find_the_folder_of_the_first(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 0)  # on each machine, before there is a trainer
    with RunFolder() as first:
        chosen = choose(first, tmp_path / "a")
        del os.environ[INHERITED]
        monkeypatch.setenv(variable, "1")
        assert choose(RunFolder(), tmp_path / "a", num_nodes=2) == chosen == tmp_path / "a"
        finish(chosen)
        assert choose(RunFolder(), tmp_path / "a", resumes=True, num_nodes=2) == chosen
        assert choose(RunFolder(), tmp_path / "a") == tmp_path / "a-2"  # a run of this machine alone


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_said_and_used(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", refuse)
    with RunFolder() as zero:
        with pytest.warns(UserWarning, match=f"no locks .{os.strerror(code)}.: runs that start at the same time may"):
            assert choose(zero, tmp_path / "a") == tmp_path / "a"
        monkeypatch.setattr(rank_zero_only, "rank", 1)
        del os.environ[INHERITED]
        assert choose(RunFolder(), tmp_path / "a") == tmp_path / "a"
        monkeypatch.setattr(rank_zero_only, "rank", 0)
        finish(tmp_path / "a")
    with RunFolder() as resumed, pytest.warns(UserWarning, match="no locks"):
        assert choose(resumed, tmp_path / "a", resumes=True) == tmp_path / "a"


def test_another_users_lock_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("vrft.cli.run_folder.FileLock.acquire", refuse)
    with pytest.raises(ConfigurationError, match=f"run_dir: can't write to {tmp_path}/a/.lock: Permission denied"):
        choose(RunFolder(), tmp_path / "a")


def test_a_refused_run_leaves_no_folder(quick_fit: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(quick_fit(f"--run_dir={tmp_path}/deep/er/run", "--ckpt_path=absent.ckpt")) == 2
    assert main(quick_fit(f"--run_dir={tmp_path}/deep/er/run", "--trainer.strategy=absent")) == 2
    assert not (tmp_path / "deep").exists()
    assert INHERITED not in os.environ


def test_the_folder_is_chosen_after_interpolation(
    quick_fit: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = []

    def record(folder: RunFolder, command: str, requested: Path, *, num_nodes: int, **_: object) -> Path:
        chosen.append((command, requested, num_nodes))
        raise ConfigurationError("far enough")

    monkeypatch.setattr(RunFolder, "choose", record)
    monkeypatch.setenv("VRFT_TEST_SCRATCH", str(tmp_path / "scratch"))
    assert main(quick_fit("--run_dir=${oc.env:VRFT_TEST_SCRATCH}/7", "--trainer.num_nodes=3")) == 2
    assert chosen == [("fit", tmp_path / "scratch" / "7", 3)]
