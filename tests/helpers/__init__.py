"""What several tests use: the repository's root, arguments of commands, and modules with writers and servers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
CSV_ONLY = "--trainer.logger={class_path: vrft.loggers.CSVLogger, init_args: {save_dir: '${....run_dir}', name: logs}}"
Command = Callable[..., list[str]]
"""Makes the words of a command; more arguments may follow."""
