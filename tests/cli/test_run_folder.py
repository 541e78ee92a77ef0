"""Folders of runs: chosen after resolution, one per run, locked while it writes, and never left behind empty."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from lightning.pytorch.utilities import rank_zero_only

from tests.helpers import Command
from vrft.__main__ import main
from vrft.cli.run_folder import INHERITED, LAUNCH, LOCK, RunFolder
from vrft.errors import ConfigurationError


def choose(folder: RunFolder, requested: Path, command: str = "fit", resumes: bool = False) -> Path:
    return folder.choose(command, requested, resumes=resumes, configs=[])


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
        monkeypatch.delenv(INHERITED)
        assert choose(RunFolder(), requested) == chosen  # started by a launcher
        monkeypatch.setattr("vrft.cli.run_folder.RANK_ZERO_SECONDS", 0.1)
        monkeypatch.setenv("MASTER_PORT", "4712")
        with pytest.raises(ConfigurationError, match="rank 0 has chosen no folder"):
            choose(RunFolder(), requested)
    assert sorted(path.name for path in chosen.iterdir()) == [LOCK]


def test_a_refused_run_leaves_no_folder(quick_fit: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(quick_fit(f"--run_dir={tmp_path}/deep/er/run", "--ckpt_path=absent.ckpt")) == 2
    assert main(quick_fit(f"--run_dir={tmp_path}/deep/er/run", "--trainer.strategy=absent")) == 2
    assert not (tmp_path / "deep").exists()
    assert INHERITED not in os.environ


def test_the_folder_is_chosen_after_interpolation(
    quick_fit: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = []

    def record(folder: RunFolder, command: str, requested: Path, **_: object) -> Path:
        chosen.append((command, requested))
        raise ConfigurationError("far enough")

    monkeypatch.setattr(RunFolder, "choose", record)
    monkeypatch.setenv("VRFT_TEST_SCRATCH", str(tmp_path / "scratch"))
    assert main(quick_fit("--run_dir=${oc.env:VRFT_TEST_SCRATCH}/7")) == 2
    assert chosen == [("fit", tmp_path / "scratch" / "7")]
