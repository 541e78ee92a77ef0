"""Shared fixtures: no W&B server, and overrides for runs of seconds."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # whose threads log what they can't send
os.environ.setdefault("WANDB_X_SAVE_REQUIREMENTS", "false")  # a list of all installed packages, a tenth of a short run

import contextlib
import gc
import io
import shutil
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.helpers import Command
from tests.helpers.finished import EVERYTHING, Finished, scene_arguments, short_fit
from tests.helpers.forks import run_python
from tests.helpers.leaks import process_state
from tests.helpers.ranks import Ranks
from vrft.__main__ import main

TRAINS = {
    "quick_fit",
    "like_whole",
    "command",
    "runs",
    "two_ranks",
    "doctor",
    "workspace",
    "photos",
    "predictor",
    "finished",
}
"""Fixtures of slow tests, which make whole runs."""


@pytest.hookimpl(tryfirst=True)  # before -m leaves tests out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that make runs as slow, and put the files that take longest first: they decide when all are done."""
    seconds: Counter[Path] = Counter()
    for item in items:
        marker = item.get_closest_marker("slow")
        if marker is None and TRAINS & {*getattr(item, "fixturenames", ())}:
            marker = pytest.mark.slow.mark
            item.add_marker(marker.name)
        seconds[item.path] += 0 if marker is None else marker.kwargs.get("seconds", 2)
    items.sort(key=lambda item: -seconds[item.path])


def pytest_collection_finish() -> None:
    """Turn on the garbage collection that `tests/__init__.py` turns off."""
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="module")
def _no_leaks() -> Iterator[None]:
    """Fail a file that leaves a signal handler, an environment variable or another setting of the process behind."""
    before = process_state()
    yield
    after = process_state()
    changed = [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
    assert not {name: (before.get(name), after.get(name)) for name in changed}


@pytest.fixture
def tiny_scenes(tmp_path: Path) -> list[str]:
    """Return arguments for a small scene data set in the test's folder."""
    return scene_arguments(tmp_path)


@pytest.fixture
def quick_fit(tmp_path: Path) -> Command:
    """Return a function that builds the quickstart's command with two steps on twelve scenes, plus more arguments."""
    return partial(short_fit, tmp_path)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Make a run in `folder/run` with all loggers, transcripts, checkpoints and evaluations, and keep its output."""
    folder = tmp_path_factory.mktemp("finished")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(short_fit(folder, *EVERYTHING)) == 0
    return Finished(folder, printed.getvalue())


@pytest.fixture
def finished_run(finished: Finished, tmp_path: Path) -> Path:
    """Copy the finished run and its data to the test's folder, and return the copy."""
    shutil.copytree(finished.folder, tmp_path, symlinks=True, dirs_exist_ok=True)
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace(str(finished.folder), str(tmp_path)))
    return tmp_path / "run"


@pytest.fixture(scope="session")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    """Yield two processes that run commands together."""
    ranks = Ranks(tmp_path_factory.mktemp("ranks"), 2)
    yield ranks
    ranks.stop()


@pytest.fixture
def _forked_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork the processes that read MATLAB files, which takes a fraction of their start."""
    monkeypatch.setattr("vrft.data.datasets.benchmarks.subprocess", SimpleNamespace(run=run_python))


@pytest.fixture
def _new_wandb() -> Iterator[None]:
    """Let W&B read its settings from the environment again, which it does once in a process, and again afterwards."""
    import wandb  # here, so that only a worker with such a test imports it

    wandb.teardown()
    yield
    wandb.teardown()


@pytest.fixture
def _no_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder without runs, since the name of a new run depends on existing ones."""
    monkeypatch.chdir(tmp_path)
