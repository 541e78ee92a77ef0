"""Find configs in the package by name, e.g. `--config quickstart`, from any working folder."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from vrft.errors import ConfigurationError

CONFIGS = Path(__file__).parents[1] / "configs"

PARTS = ("data", "model")
"""Folders with values of single fields, which configs name by path."""


def config_names() -> list[str]:
    """Return the names of all configs in the package: their paths in `vrft/configs` without the suffix."""
    paths = [path.relative_to(CONFIGS) for path in CONFIGS.rglob("*.yaml")]
    return sorted(path.with_suffix("").as_posix() for path in paths if path.parts[0] not in PARTS)


def named_config(name: str) -> Path:
    """Return the path of a config in the package.

    Args:
        name: a name in `config_names`. A path such as `configs/quickstart.yaml` always means a file of the user, even
            if the package has a config of that name.

    Raises:
        ConfigurationError: no config has this name.

    >>> named_config("trainer/cpu").relative_to(CONFIGS).as_posix()
    'trainer/cpu.yaml'
    """
    names = config_names()
    if name in names:
        return CONFIGS / f"{name}.yaml"
    raise ConfigurationError(
        f"--config: no such file, and no config of this name in the package: {name} ({_hint(name)})"
    )


def _hint(name: str) -> str:
    names = config_names()
    path = Path(name)
    for short in (path.with_suffix("").as_posix() if path.name else name, path.stem):
        if close := difflib.get_close_matches(short.removeprefix("configs/"), names, n=1):
            return f"did you mean --config {close[0]}?"
    return "`python -m vrft configs` lists the names"


def find_configs(args: Sequence[str]) -> list[str]:
    """Replace names of configs in the package by their paths in the values of `--config`. Existing files come first.

    Raises:
        ConfigurationError: a value is missing, or is neither a file nor a name.
    """
    found = list(args)
    for i, word in enumerate(found):
        if word.startswith("--config="):
            found[i] = f"--config={_find(word.partition('=')[2])}"
        elif word == "--config":
            if i + 1 == len(found) or found[i + 1].startswith("--"):
                raise ConfigurationError("--config: expected a name or a file after it")
            found[i + 1] = _find(found[i + 1])
    return found


def _find(value: str) -> str:
    path = Path(value)
    if value and (path / "config.yaml").is_file():
        raise ConfigurationError(f"--config: {value} is a folder (did you mean --config {path / 'config.yaml'}?)")
    return value if path.exists() and not path.is_dir() else str(named_config(value))
