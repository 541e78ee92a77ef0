"""Definitions of studies: the methods to compare, their labels and tuning, and the tests."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent / "studies"
Settings = dict[str, Any]
"""Fields of a run's config with their values, as in `--field=value`."""


@dataclass(frozen=True)
class Method:
    """A training method. Methods of a study are compared with the first one."""

    config: str
    learning_rates: tuple[float, ...]
    interval: int
    """Number of steps between evaluations on the fold."""
    settings: Settings = field(default_factory=dict)
    budget: float | None = None
    """Seconds for all trials together; default: the study's budget."""
    after: str | None = None
    """The method from whose result training starts; default: the base."""
    folder: str = ""
    """Folder of the runs. Studies that share a method share its folder, so that it is trained once."""


@dataclass(frozen=True)
class Study:
    """All settings of a study except shots and seeds."""

    name: str
    title: str
    about: str
    trained: str
    """Name of the study whose policies are tested: this study, or another one if this one does not train."""
    metric: str
    """Score that selects trials on the fold and is shown in the table, by its logged name after `val/`."""
    metrics: tuple[str, ...]
    """Other scores of a test to keep."""
    budget: float
    """Seconds for all trials of a method, for one number of shots and one seed."""
    settings: Settings
    fold: Settings
    """Settings that hold out a fold of the training data in a trial."""
    tests: dict[str, Settings]
    methods: dict[str, Method]
    paper: dict[int, dict[str, float]]
    """The paper's numbers by shots and method, in percent."""
    source: str = ""
    """Source of the numbers in the paper."""
    shots: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Default numbers of labelled images per category; 0: all."""


def load(name: str, budget: float | None = None) -> Study:
    """Read `studies/NAME.yaml`. A study with `trained: OTHER` has the settings and methods of OTHER.

    `budget` replaces the study's budget.
    """
    if name not in names():
        raise SystemExit(f"few_shot: no study {name!r}; there are {', '.join(names())}")
    content = read(name)
    methods = {
        key: Method(**{**value, "learning_rates": tuple(map(float, value["learning_rates"]))})
        for key, value in content.pop("methods").items()
    }
    metrics = tuple(content.pop("metrics"))
    if budget is not None:
        content["budget"] = budget
    printed = yaml.safe_load((Path(__file__).parent / "paper.yaml").read_text()).get(name, {})
    content |= {"paper": printed.get("numbers", {}), "source": printed.get("source", "")}
    return Study(name=name, methods=methods, metrics=metrics, **content)


def read(name: str) -> dict[str, Any]:
    """Return the content of a study's file, merged over the study named by its `from` or `trained`."""
    content: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    if "trained" in content:
        return read(content["trained"]) | content
    if "from" in content:
        return extended(name, read(content.pop("from")), content)
    content["methods"] = {key: {"folder": folder_of(name, key)} | method for key, method in content["methods"].items()}
    return content | {"trained": name}


def extended(name: str, other: dict[str, Any], content: dict[str, Any]) -> dict[str, Any]:
    """Return a study whose methods are those named by `like` in the other study, with changes.

    Settings are merged over those of the other study. A method without changes shares the runs of the other study.
    """
    content |= {key: other[key] | content.get(key, {}) for key in ("settings", "fold")}
    alike = all(content.get(key, other[key]) == other[key] for key in ("budget", "settings", "fold"))
    methods = {}
    for key, changes in content["methods"].items():
        kept = other["methods"][changes.pop("like")]
        settings = kept.get("settings", {}) | changes.pop("settings", {})
        if changes or settings != kept.get("settings", {}) or not alike:
            changes = {"folder": folder_of(name, key)} | changes
        methods[key] = kept | changes | {"settings": settings}
    return other | content | {"trained": name, "methods": methods}


def folder_of(study: str, method: str) -> str:
    return f"{study}/{method.replace(' ', '_')}"


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def of_config(path: Path) -> str:
    """Return the name of the study that trains with a config."""
    for name in names():
        methods = yaml.safe_load((FOLDER / f"{name}.yaml").read_text()).get("methods", {})
        if path.as_posix() in [method.get("config") for method in methods.values()]:
            return name
    raise SystemExit(f"few_shot: no study trains with {path}")


def arguments(settings: Settings) -> list[str]:
    """Return settings as command-line arguments."""
    return [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in settings.items()]
