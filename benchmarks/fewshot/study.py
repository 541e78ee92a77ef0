"""A study: what is trained by which methods on how many labels, how it is tuned, and what it is tested on."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent / "studies"
Settings = dict[str, Any]
"""Fields of a run's config and their values, as `--field=value` says them."""


@dataclass(frozen=True)
class Method:
    """One way to train. The first method of a study is what the others are compared with."""

    config: str
    learning_rates: tuple[float, ...]
    interval: int
    """Steps between looks at the fold."""
    settings: Settings = field(default_factory=dict)
    budget: float | None = None
    """Seconds of all its trials together; default: the study's."""
    after: str | None = None
    """The method whose result it starts from; default: the base."""
    folder: str = ""
    """Where its runs are kept: that of the first study that has it, so that no study trains it again."""


@dataclass(frozen=True)
class Study:
    """Everything but shots and seeds."""

    name: str
    title: str
    about: str
    trained: str
    """The study whose policies are tested; its own name unless it only tests those of another one."""
    metric: str
    """What trials are chosen by on the fold, and what the table shows, as evaluators log it after `val/`."""
    metrics: tuple[str, ...]
    """What else is kept of a test."""
    budget: float
    """Seconds that a method has for all its trials at one number of shots and one seed."""
    settings: Settings
    fold: Settings
    """What makes the held-out samples of a trial a fold of the training data."""
    tests: dict[str, Settings]
    methods: dict[str, Method]
    paper: dict[int, dict[str, float]]
    """The paper's numbers by shots and method, in percent as it prints them."""
    source: str = ""
    """Where it prints them."""
    shots: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Labelled images per category, if nothing else is asked for; 0 is all that there are."""


def load(name: str, budget: float | None = None) -> Study:
    """Read `studies/NAME.yaml`; one that says `trained: OTHER` has the other's settings and methods.

    `budget`: in place of the one that it says.
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
    """A study's file, on top of the one that it is `from` or whose policies it tests."""
    content: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    if "trained" in content:
        return read(content["trained"]) | content
    if "from" in content:
        return extended(name, read(content.pop("from")), content)
    content["methods"] = {key: {"folder": folder_of(name, key)} | method for key, method in content["methods"].items()}
    return content | {"trained": name}


def extended(name: str, other: dict[str, Any], content: dict[str, Any]) -> dict[str, Any]:
    """A study with methods of its own, each of which is `like` one of the other's but for what it says.

    Settings come on top of the other's. A method that says nothing is the other's, with its runs.
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
    """The study that reinforces with a config."""
    for name in names():
        methods = yaml.safe_load((FOLDER / f"{name}.yaml").read_text()).get("methods", {})
        if path.as_posix() in [method.get("config") for method in methods.values()]:
            return name
    raise SystemExit(f"few_shot: no study trains with {path}")


def arguments(settings: Settings) -> list[str]:
    """Settings as a command line says them."""
    return [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in settings.items()]
