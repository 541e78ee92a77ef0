"""Samples and errors of data modules, without a trainer."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.helpers import formats
from vrft.data import RecordData
from vrft.errors import ConfigurationError
from vrft.tasks import DetectionTask, Task
from vrft.types import Detection, Sample

Samples = list[Sample]


def samples_of(
    data: RecordData, tmp_path: Path, task: Task | None = None, stage: str = "fit"
) -> tuple[Samples, Samples]:
    """Return the training and the held-out samples of a data module."""
    module = SimpleNamespace(task=task or DetectionTask())
    run = str(tmp_path / "run")
    stages = {"testing": stage == "test", "predicting": stage == "predict"}
    data.trainer = SimpleNamespace(default_root_dir=run, lightning_module=module, **stages)  # type: ignore[assignment]
    data.setup(stage)
    train = [data.train_set()[i] for i in range(len(data.train_set()))] if stage == "fit" else []
    return train, [data.evaluated_set()[i] for i in range(len(data.evaluated_set()))]


def said_of(make: Callable[..., RecordData], tmp_path: Path, task: Task | None = None, stage: str = "fit") -> str:
    """Return the bad records that stop a run. With "skip", check that the run lists them and reads the rest."""
    with pytest.raises(ConfigurationError) as caught:
        samples_of(make(), tmp_path, task, stage)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train, val = samples_of(make(on_bad_record="skip", on_missing_image="skip"), tmp_path, task, stage)
    assert val
    assert train or stage != "fit"
    listed = (tmp_path / "run" / "bad_records.txt").read_text()
    assert listed.splitlines() == str(caught.value).splitlines()[1:]
    return listed


def refused(make: Callable[..., RecordData], tmp_path: Path, task: Task | None = None) -> str:
    """Return the message of the error that stops a run even if bad records are skipped."""
    with pytest.raises(ConfigurationError) as caught:
        samples_of(make(on_bad_record="skip", on_missing_image="skip"), tmp_path, task)
    return str(caught.value)


def drawn(part: str, count: int = 4, objects: tuple[int, int] = (1, 3)) -> list[list[Detection]]:
    return [boxes for _, boxes in formats.scenes(part, count, objects)]


def assert_same_boxes(found: Any, true: list[Detection], tolerance: float = 1e-4) -> None:
    found, expected = sorted(box.box for box in found), sorted(box.box for box in true)
    assert np.allclose(found, expected, atol=tolerance), (found, expected)
