"""Checks of a command line that need no torch, so that their messages appear at once."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from vrft.cli.argv import normalise_argv, option_values, read_config
from vrft.cli.config_files import check_files, hiding_contents
from vrft.cli.field_names import check_names
from vrft.cli.help import overview
from vrft.cli.named_configs import config_names, find_configs
from vrft.cli.parser_errors import shorten
from vrft.errors import ConfigurationError

FIELDS = frozenset(
    {
        *("run_dir", "seed_everything", "task", "model", "data", "trainer"),
        *("checkpoint", "transcripts", "skipped_steps", "guards"),
    }
)
"""Fields of a config at its top."""

OPTIONS = FIELDS | {
    *("config", "help", "print_config", "ckpt_path", "weights_only", "verbose"),
    *("against", "resamples", "images", "query", "draw", "gpu_memory", "probe"),
}
"""Options of some command, without the fields below them."""


def prepare(args: Sequence[str]) -> list[str]:
    """Return the arguments that the parser gets, with the paths of configs and the requested folder of the run.

    Raises:
        ConfigurationError: no option is given, there is no such config, it is not YAML, or a word or a field's name is
            unknown.
    """
    if len(args) == 1:
        raise ConfigurationError(
            f"{args[0]} needs a config: --config NAME_OR_FILE (`python -m vrft configs` lists names)"
        )
    args = find_configs(args)
    check_files(args)
    with hiding_contents(args):
        prepared = normalise_argv(args)
        check_options(args[0], prepared[1:])
        for config in option_values(args, "--config"):
            check_fields(config)
        check_names(prepared[1:])
    return prepared


def check_options(command: str, options: Sequence[str]) -> None:
    """Raise ConfigurationError for a word that is no option of any command, and not the value of one."""
    known = re.findall(r"--([\w.]+\w)", overview(command))
    for word in _unexpected(options):
        hint = f" (did you mean --config {word}?)" if word in config_names() else ""
        raise ConfigurationError(shorten(f"unrecognized arguments: {word}", known) + hint)


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
    """Raise ConfigurationError for an unknown field at the top of a config."""
    for name in read_config(config):
        if name not in OPTIONS - {"config", "help", "print_config"}:
            close = difflib.get_close_matches(str(name), FIELDS, n=1)
            expected = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(sorted(FIELDS))}"
            raise ConfigurationError(f"{Path(config)}: no such field: {name} ({expected})")
