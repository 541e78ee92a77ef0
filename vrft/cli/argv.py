"""Which folder a run writes to."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vrft.errors import ConfigurationError
from vrft.utils.yaml_text import decode_yaml


def choose_run_dir(args: Sequence[str]) -> list[str]:
    """The arguments with a `--run_dir`: the one that was asked for, or `runs/` and the name of the last experiment.

    An experiment is a config that says which model class; one that doesn't is a part of others.

    A folder that holds a run is never written over: a new `fit` goes to the first free one of `DIR`, `DIR-2`, `DIR-3`
    and so on; everything else, and `fit --ckpt_path …`, means the latest of them, or the one whose own config.yaml is
    given. A folder holds a run if it has a config.yaml, which is written when all ranks are up, so all of them choose
    the same one.
    """
    if any(arg in ("-h", "--help") or arg.partition("=")[0].endswith(".help") for arg in args):
        return list(args)
    configs = {config: _read(config) for config in _values(args, "--config")}
    said = [content["run_dir"] for content in configs.values() if isinstance(content.get("run_dir"), str)]
    asked = _values(args, "--run_dir") or said
    experiments = [config for config, content in configs.items() if _names_model(content)] or [*configs]
    base = Path(asked[-1]) if asked else Path("runs") / (Path(experiments[-1]).stem if experiments else "run")
    fresh = args[0] == "fit" and not _values(args, "--ckpt_path")
    if not fresh and base / "config.yaml" in map(Path, configs):  # a run's own config means that run
        return [*args, f"--run_dir={base}"]
    chosen = following = base
    for number in itertools.count(2):
        if not (following / "config.yaml").exists():
            break
        chosen, following = following, base.with_name(f"{base.name}-{number}")
    return [*args, f"--run_dir={following if fresh else chosen}"]


def _names_model(content: dict[str, Any]) -> bool:
    """Whether a config has a model's class, or the name of a file that has it."""
    model = content.get("model")
    return isinstance(model, str) or (isinstance(model, dict) and "class_path" in model)


def _values(args: Sequence[str], option: str) -> list[str]:
    """Values of an option, given as `--option=value` or `--option value`."""
    values = [arg.partition("=")[2] for arg in args if arg.startswith(f"{option}=")]
    return values + [value for arg, value in itertools.pairwise(args) if arg == option]


def _read(config: str) -> dict[str, Any]:
    path = Path(config)
    if not path.is_file():
        raise ConfigurationError(f"--config: no such file: {path}")
    try:
        content = decode_yaml(path.read_text())
    except ValueError as error:
        raise ConfigurationError(f"--config: {path} is not YAML: {error}") from error
    return content if isinstance(content, dict) else {}
