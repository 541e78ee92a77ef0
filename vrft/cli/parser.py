"""The parser of the commands that take no config, e.g. score, evaluate and export."""

from __future__ import annotations

from argparse import RawDescriptionHelpFormatter
from typing import NoReturn

from jsonargparse import ArgumentParser

from vrft.cli.parser_errors import did_you_mean
from vrft.errors import ConfigurationError

MISSING = "arguments are required: "


class Parser(ArgumentParser):
    """Prints the description verbatim in its help, and reports an error in one line."""

    def __init__(self, command: str, description: str) -> None:
        super().__init__(
            prog=f"python -m vrft {command}",
            description=description,
            formatter_class=RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.command = command

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        options = [option.lstrip("-") for action in self._actions for option in action.option_strings]
        raise ConfigurationError(f"{self.command}: {self._as_typed(message)}{did_you_mean(message, options)}")

    def _as_typed(self, message: str) -> str:
        """Name missing arguments as typed on the command line; jsonargparse names them by attribute."""
        typed = {action.dest: str([*action.option_strings, action.metavar][0]) for action in self._actions}
        start, missing, names = message.partition(MISSING)
        return start + missing + ", ".join(typed[name] for name in names.split(", ")) if missing else message
