"""Shared fixtures: one thread, no W&B server, and overrides for runs of seconds."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.helpers import ROOT
from tests.helpers.forks import run_python
from tests.helpers.ranks import Ranks

TRAINS = {"quick_fit", "like_whole", "command", "runs", "two_ranks", "doctor", "workspace", "photos", "predictor"}
"""Fixtures of slow tests, which make whole runs."""


@pytest.hookimpl(tryfirst=True)  # before -m leaves tests out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that make runs as slow, and put the files that take longest first: they decide when all are done."""
    seconds: Counter[Path] = Counter()
    for item in items:
        if TRAINS & {*getattr(item, "fixturenames", ())}:
            item.add_marker(pytest.mark.slow)
        marker = item.get_closest_marker("slow")
        seconds[item.path] += 0 if marker is None else marker.kwargs.get("seconds", 2)
    items.sort(key=lambda item: -seconds[item.path])


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def tiny_scenes(tmp_path: Path) -> list[str]:
    """Return arguments for a small scene data set in the test's folder."""
    return [
        f"--data.train_annotations={tmp_path}/train.json",
        f"--data.train_images={tmp_path}/train",
        f"--data.val_annotations={tmp_path}/val.json",
        f"--data.val_images={tmp_path}/val",
        "--data.train_size=12",
        "--data.val_size=6",
    ]


@pytest.fixture
def quick_fit(tmp_path: Path, tiny_scenes: list[str]) -> Callable[..., list[str]]:
    """Return a function that builds the quickstart's command with two steps on twelve scenes, plus more arguments."""

    def command(*more: str) -> list[str]:
        config = str(ROOT / "configs" / "quickstart.yaml")
        short = ["--trainer.max_steps=2", "--trainer.val_check_interval=100", "--data.batch_size=2"]
        short += [f"--run_dir={tmp_path}/run", "--trainer.enable_progress_bar=false"]
        return ["fit", "--config", config, *tiny_scenes, *short, *more]

    return command


@pytest.fixture(scope="session")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    """Yield two processes that run commands together."""
    ranks = Ranks(tmp_path_factory.mktemp("ranks"), 2)
    yield ranks
    ranks.stop()


@pytest.fixture
def _forked_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork the processes that read MATLAB files, which takes a fraction of their start."""
    monkeypatch.setattr("vrft.data.benchmarks.subprocess", SimpleNamespace(run=run_python))


@pytest.fixture
def _no_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder without runs, since the name of a new run depends on existing ones."""
    monkeypatch.chdir(tmp_path)
