"""Check a command line before torch is imported, so that messages appear at once."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from vrft.cli.argv import normalise_argv, option_values, read_config
from vrft.cli.config_files import check_files, hiding_contents
from vrft.cli.field_names import check_names
from vrft.cli.help import overview
from vrft.cli.named_configs import config_names, find_configs
from vrft.cli.parser_errors import shorten
from vrft.cli.trainer_values import check_given
from vrft.errors import ConfigurationError

FIELDS = frozenset(
    {
        *("run_dir", "seed_everything", "task", "model", "data", "trainer"),
        *("checkpoint", "transcripts", "skipped_steps", "guards"),
    }
)
"""Top-level fields of a config."""

OPTIONS = FIELDS | {
    *("config", "help", "print_config", "ckpt_path", "weights_only", "verbose"),
    *("against", "resamples", "samples", "images", "query", "split", "draw", "gpu_memory", "probe"),
    *("reward", "success", "lowest", "highest", "budgets"),
}
"""Options of all commands, without nested fields."""


ELSEWHERE = {
    "c": "config",
    "cfg": "config",
    "lr": "model.optimizer.lr",
    "learning_rate": "model.optimizer.lr",
    "epochs": "trainer.max_epochs",
    "steps": "trainer.max_steps",
    "seed": "seed_everything",
    "gpus": "trainer.devices",
    "output": "run_dir",
    "output_dir": "run_dir",
    "resume": "ckpt_path",
    "checkpoint": "ckpt_path",
    "model_name_or_path": "model.policy.checkpoint",
}
"""Names that other packages use for our options, for hints."""

WITHOUT_VALUE = ("help", "print_config", "draw", "verbose", "images", "query")
"""Last parts of the names of options that need no value."""


def prepare(args: Sequence[str]) -> list[str]:
    """Return the arguments for the parser, with the paths of configs and the requested folder of the run.

    Raises:
        ConfigurationError: no option is given, a config does not exist or is not YAML, an argument or a field's name is
            unknown, or a value of the trainer is invalid.
    """
    if len(args) == 1 or not _has_config(args):
        check_options(args[0], args[1:])
        raise ConfigurationError(
            f"{args[0]} needs a config: --config NAME_OR_FILE (`python -m vrft configs` lists names)"
        )
    args = find_configs(args)
    check_files(args)
    with hiding_contents(args):
        prepared = normalise_argv(args)
        check_options(args[0], prepared[1:])
        check_values(prepared[1:])
        for config in option_values(args, "--config"):
            check_fields(config)
        check_names(prepared[1:])
        check_given(args[1:])
    return prepared


def check_options(command: str, options: Sequence[str]) -> None:
    """Raise ConfigurationError for an argument that is neither an option of any command nor the value of an option."""
    known = re.findall(r"--([\w.]+\w)", overview(command))
    for word in _unexpected(options):
        message = f"unrecognized arguments: {word}"
        name, equals, _ = word.lstrip("-").partition("=")
        if word in config_names():
            raise ConfigurationError(f"{message} (did you mean --config {word}?)")
        if name in ELSEWHERE and word.startswith("-"):
            raise ConfigurationError(f"{message} (did you mean '{ELSEWHERE[name]}'?)")
        if name.partition(".")[0] in OPTIONS and (equals or word.startswith("-")) and not word.startswith("--"):
            raise ConfigurationError(f"{message} (did you mean --{word.lstrip('-')}?)")
        raise ConfigurationError(shorten(message, known))


def _has_config(args: Sequence[str]) -> bool:
    """Return whether a config is named, or options replace it or ask for help."""
    alone = ("config", "model", "print_config")
    words = [re.split(r"[.=+]", word.removeprefix("--"))[0] for word in args[1:] if word.startswith("--")]
    return not words or any(word in alone for word in words) or any(".help" in word for word in args)


def check_values(options: Sequence[str]) -> None:
    """Raise ConfigurationError for an option without a value."""
    for word, following in pairwise([*options, "--"]):
        needs_value = word.startswith("--") and "=" not in word and word.rpartition(".")[2] not in WITHOUT_VALUE
        if needs_value and word.removeprefix("--") not in WITHOUT_VALUE and following.startswith("--"):
            raise ConfigurationError(f"argument {word}: expected one argument")


def _unexpected(options: Sequence[str]) -> Iterator[str]:
    takes_value = False
    for word in options:
        if word.startswith("--"):
            name, equals, _ = word.removeprefix("--").partition("=")
            takes_value = not equals
            if re.split(r"[.+]", name)[0] not in OPTIONS:
                yield word
        elif takes_value:
            takes_value = False
        else:
            yield word


def check_fields(config: str) -> None:
    """Raise ConfigurationError for an unknown top-level field of a config."""
    content = read_config(config)
    if {"images", "annotations"} <= {*content}:
        raise ConfigurationError(
            f"--config: {config} has annotations, not settings; pass it as --data.train_annotations {config}"
        )
    for name in content:
        if name not in OPTIONS - {"config", "help", "print_config"}:
            close = difflib.get_close_matches(str(name), FIELDS, n=1)
            expected = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(sorted(FIELDS))}"
            raise ConfigurationError(f"{Path(config)}: no such field: {name} ({expected})")
