"""Options of the small commands."""

from __future__ import annotations

import argparse
from typing import NoReturn

from vrft.errors import ConfigurationError


class Parser(argparse.ArgumentParser):
    """Shows a description as it is written, and says in one line what is wrong."""

    def __init__(self, command: str, description: str) -> None:
        super().__init__(
            f"python -m vrft {command}",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.command = command

    def error(self, message: str) -> NoReturn:
        raise ConfigurationError(f"{self.command}: {message}")
