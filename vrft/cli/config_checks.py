"""Checks of a parsed config before anything is instantiated."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import Namespace

from vrft.errors import ConfigurationError

TRUST = "trust_remote_code"


def check_trust(config: Namespace, args: Sequence[str]) -> None:
    """Check that permission to run a checkpoint's own code comes from the command line and not from a file.

    Raises:
        ConfigurationError: it comes from a file.
    """
    if config.get(f"model.init_args.policy.init_args.{TRUST}") and not any(TRUST in arg for arg in args):
        raise ConfigurationError(untrusted(f"--model.policy.{TRUST}=true"))


def untrusted(option: str) -> str:
    """Return the message for a config that permits a checkpoint's own code. `option`: the one that may permit it."""
    return (
        f"model.policy.{TRUST}: only the command line can permit code that comes with a checkpoint, not a file; if you "
        f"trust it, add {option}"
    )


def check_writable(folder: Path) -> None:
    """Check that a run can write to a folder, before it has worked for hours.

    Raises:
        ConfigurationError: it can't.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ConfigurationError(f"run_dir: can't write to {folder}: {error.strerror}") from error


def resolve_checkpoints(config: Namespace) -> None:
    """Replace `ckpt_path: last` and `best` by their paths, and check that the checkpoints exist.

    Raises:
        ConfigurationError: one does not exist.
    """
    if config.ckpt_path in ("last", "best"):
        config.ckpt_path = str(Path(config.checkpoint.dirpath) / f"{config.ckpt_path}.ckpt")
    against = config.get("against")  # of `test` alone
    for field, path in (("ckpt_path", config.ckpt_path), ("against", None if against == "base" else against)):
        if path is not None and not Path(path).exists():
            hint = "; it is written if checkpoint.monitor is set" if Path(path).name == "best.ckpt" else ""
            kind = "results file" if Path(path).suffix == ".json" else "checkpoint"
            raise ConfigurationError(f"{field}: no such {kind}: {path}{hint}")
