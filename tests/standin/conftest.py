"""Runs on the CPU and on the stand-in for a GPU, which have to end the same."""

from __future__ import annotations

import csv
import gc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from tests.helpers import CSV_ONLY
from tests.helpers.finished import scene_arguments
from tests.standin.run import main

ACCELERATORS = {"cpu": "cpu", "cuda": "gpu"}
SHORT = (
    *("--trainer.max_steps=2", "--trainer.limit_val_batches=0", "--trainer.enable_progress_bar=false"),
    *("--data.batch_size=2", "--model.max_completion_length=16", "--model.num_generations=4", CSV_ONLY),
)


class Run(NamedTuple):
    """The result of a run: final weights by name, logged metrics by step and name, and warnings of memory."""

    folder: Path
    weights: dict[str, Tensor]
    metrics: list[dict[str, float]]
    warnings: list[str]


@pytest.hookimpl(tryfirst=True)  # before fixtures of modules
def pytest_runtest_setup() -> None:
    """Free the models of earlier tests, which would be freed while a test measures memory."""
    gc.collect()


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return arguments for a small data set, which the first run generates."""
    return scene_arguments(tmp_path_factory.mktemp("data"))


def command(folder: Path, device: str, data: list[str], *more: str, config: str = "quickstart") -> list[str]:
    """Return the command of a short run on a device, in float32 unless `more` says otherwise."""
    short = [option for option in SHORT if config == "quickstart" or "num_generations" not in option]
    on_device = ["--trainer.devices=1", f"--trainer.accelerator={ACCELERATORS[device]}"]
    return ["fit", f"--config={config}", *data, *short, f"--run_dir={folder}", *on_device, *more]


def run(folder: Path, device: str, data: list[str], *more: str, config: str = "quickstart") -> Run:
    """Run `fit` on a device."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert main(command(folder, device, data, *more, config=config)) == 0
    weights = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True, map_location="cpu")["state_dict"]
    with (folder / "logs" / "version_0" / "metrics.csv").open() as file:
        rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
    memory = [str(entry.message) for entry in caught if "out of memory" in str(entry.message)]
    return Run(folder, weights, rows, memory)


def assert_same(one: Run, other: Run, rounding: float) -> None:
    """Compare weights and metrics, apart from times and memory."""
    assert one.weights.keys() == other.weights.keys()
    for name, weight in one.weights.items():
        assert (other.weights[name] - weight).abs().max() < rounding, name
    for mine, yours in zip(one.metrics, other.metrics, strict=True):
        measured = ("time/", "memory/", "train/samples_per_second")
        expected = {name: value for name, value in mine.items() if not name.startswith(measured)}
        found = {name: yours.get(name) for name in expected}
        assert found == pytest.approx(expected, rel=100 * rounding, abs=rounding, nan_ok=True)


@pytest.fixture
def on(tmp_path: Path, data: list[str]) -> Callable[..., Run]:
    """Return a function that runs `fit` on a device, with more arguments."""

    def start(device: str, *more: str, **options: Any) -> Run:
        return run(tmp_path / f"{device}-{len([*tmp_path.iterdir()])}", device, data, *more, **options)

    return start
