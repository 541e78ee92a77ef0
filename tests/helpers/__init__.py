"""Helpers of several tests: the repository's root, arguments of commands, file writers and fake servers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
CSV_ONLY = "--trainer.logger={class_path: vrft.loggers.CSVLogger, init_args: {save_dir: '${....run_dir}', name: logs}}"
UNJUDGED = "--trainer.limit_val_batches=0"
"""Argument of a run without evaluations, which are a third of a short run."""
Command = Callable[..., list[str]]
"""Returns a command as a list of arguments, with further arguments appended."""


def callback(kind: type, **settings: object) -> str:
    """Return the argument that adds a callback to a run."""
    text = ", ".join(f"{key}: {value}" for key, value in settings.items())
    return f"--trainer.callbacks+={{class_path: {kind.__module__}.{kind.__name__}, init_args: {{{text}}}}}"
