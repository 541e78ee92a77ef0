"""Edit the command line before the parser sees it.

jsonargparse expects `--field=VALUE` with a YAML value. `normalise_argv` converts shorter forms and adds the requested
folder of the run, to which other fields refer as `${run_dir}`.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import Any

from vrft.errors import ConfigurationError
from vrft.utils.yaml_text import decode_yaml

LISTS = ("--images", "--query")
"""Options of `predict` that take any number of values."""

FLAG = "--draw"
"""Option of `predict` that takes no value."""

NULL_PART = re.compile(r"--model\.policy\.(\w+)=null$")
"""An option that sets part of the policy to null, which jsonargparse (4.53) takes for the name of a class."""


def normalise_argv(args: Sequence[str]) -> list[str]:
    """Return the arguments for the parser. The first argument is the command.

    Raises:
        ConfigurationError: a file that `--config` names can't be read.
    """
    command = "serve_command" if args[0] == "serve-command" else args[0]
    options = args[1:]
    if command == "predict":
        options = join_lists(options)
    return [command, *nest_nulls(options), *request_run_dir(options)]


def join_lists(options: Sequence[str]) -> list[str]:
    """Convert the values of `--images` and `--query` to a YAML list each, and `--draw` to `--draw=true`.

    >>> join_lists(["--images", "a.png", "b.png", "--query=no: 1", "--draw"])
    ['--images=["a.png", "b.png"]', '--query=["no: 1"]', '--draw=true']
    """
    words, joined = list(options), []
    lists: dict[str, list[str]] = {}
    while words:
        name, equals, value = words.pop(0).partition("=")
        if name in LISTS:
            values = _parse_list(value) if equals else []
            while not equals and words and not words[0].startswith("--"):
                values.append(words.pop(0))
            if name not in lists:
                joined.append(name)  # later occurrences extend the list at this position
            lists.setdefault(name, []).extend(values)
        elif name == FLAG and not equals:
            joined.append(f"{FLAG}=true")
        else:
            joined.append(f"{name}{equals}{value}")
    return [f"{word}={json.dumps(lists[word])}" if word in lists else word for word in joined]


def _parse_list(value: str) -> list[str]:
    """Return the entries of a YAML list of strings. Any other value is a single entry."""
    try:
        entries = decode_yaml(value, as_text=True) if value.startswith("[") else None
    except ValueError:
        entries = None
    return entries if isinstance(entries, list) and all(isinstance(entry, str) for entry in entries) else [value]


def nest_nulls(options: Sequence[str]) -> list[str]:
    """Set a part of the policy to null in the form that jsonargparse accepts.

    >>> nest_nulls(["--model.policy.lora=null"])
    ['--model.policy={lora: null}']
    """
    return [NULL_PART.sub(r"--model.policy={\1: null}", option) for option in options]


def request_run_dir(options: Sequence[str]) -> list[str]:
    """Return the `--run_dir` option to append: the requested folder, or `runs/` and the name of the experiment.

    The experiment is the last config that names a model class; configs without one are parts to combine.
    `vrft.cli.run_folder` chooses the folder once the parser has resolved the value.
    """
    if any(option in ("-h", "--help") or option.partition("=")[0].endswith(".help") for option in options):
        return []
    configs = {path: read_config(path) for path in option_values(options, "--config")}
    named = [content["run_dir"] for content in configs.values() if isinstance(content.get("run_dir"), str)]
    requested = option_values(options, "--run_dir") or named
    return [f"--run_dir={requested[-1] if requested else Path('runs') / _experiment(configs)}"]


def option_values(options: Sequence[str], name: str) -> list[str]:
    """Return the values of an option in the order of the command line.

    >>> option_values(["--config", "a.yaml", "--config=b.yaml"], "--config")
    ['a.yaml', 'b.yaml']
    """
    values = []
    for option, following in itertools.pairwise([*options, ""]):
        if option.startswith(f"{name}="):
            values.append(option.partition("=")[2])
        elif option == name:
            values.append(following)
    return values


def read_config(config: str) -> dict[str, Any]:
    """Return the fields of a config.

    Raises:
        ConfigurationError: the file does not exist, or is not YAML.
    """
    path = Path(config)
    if not path.is_file():
        raise ConfigurationError(f"--config: no such file: {path}")
    try:
        content = decode_yaml(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigurationError(f"--config: {path} is not YAML: {error}") from error
    if not isinstance(content, dict | NoneType):
        raise ConfigurationError(f"--config: {path} is no config: expected fields with values")
    return content or {}


def _experiment(configs: dict[str, dict[str, Any]]) -> str:
    """Return the name of the last config with a model class, else of the last config, else `run`."""
    experiments = [path for path, content in configs.items() if _names_model(content)] or list(configs)
    return Path(experiments[-1]).stem if experiments else "run"


def _names_model(content: dict[str, Any]) -> bool:
    """Return whether a config names the model's class, directly or in a file."""
    model = content.get("model")
    return isinstance(model, str) or (isinstance(model, dict) and "class_path" in model)
