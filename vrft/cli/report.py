"""`python -m vrft report RUN`: write a run as one HTML file."""

from __future__ import annotations

import webbrowser
from collections.abc import Sequence
from pathlib import Path

from vrft.cli.parser import Parser
from vrft.errors import ConfigurationError
from vrft.report import write_report

DESCRIPTION = """\
Writes RUN/report.html: curves, completions on their images with rewards and advantages, held-out images before and
after, scores per category, the config and warnings. The file needs no network and can be sent to others. The run may
still be training.
"""


def build_parser() -> Parser:
    """Return the parser of the command."""
    parser = Parser("report", DESCRIPTION)
    parser.add_argument("run", type=Path, metavar="RUN", help="the run's folder")
    parser.add_argument("--open", action="store_true", help="show it in a browser")
    return parser


def main(args: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    arguments = build_parser().parse_args(args)
    try:
        path = write_report(arguments.run)
    except OSError as error:
        raise ConfigurationError(f"report: can't write to {arguments.run}: {error.strerror}") from error
    print(f"report: {path}")
    if arguments.open:
        webbrowser.open(path.resolve().as_uri())
    return 0
