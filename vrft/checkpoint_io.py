"""Files that are whole or absent, whenever a process is killed."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from vrft.errors import ConfigurationError

PARTIAL = ".partial"
"""What the name of an unfinished file ends with. A killed run may leave one."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the file and renames, so that a kill never leaves half a checkpoint under its name."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        with replacing(Path(path)) as partial, partial.open("wb") as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:  # what torch's zip writer makes of a write that failed
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint of a run; nothing in it is executed, whatever `weights_only` says.

        Raises:
            ConfigurationError: it is something else, or damaged.
        """
        if not zipfile.is_zipfile(path):  # torch would try formats of its own past
            raise ConfigurationError(f"ckpt_path: {path} is no checkpoint, or not all of one")
        try:
            checkpoint = torch.load(path, map_location or "cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            found = re.search(r"GLOBAL ([\w.]+)", str(error))
            asked = f": it asks for {found[1]}" if found else ""
            raise ConfigurationError(f"ckpt_path: {path} holds more than numbers, and is refused{asked}") from error
        except RuntimeError as error:
            raise ConfigurationError(f"ckpt_path: {path} is damaged: {str(error).partition(chr(10))[0]}") from error
        if not isinstance(checkpoint, dict) or not {"state_dict", "optimizer_states"} <= checkpoint.keys():
            raise ConfigurationError(f"ckpt_path: {path} is not of a run: it has no optimizer_states")
        return checkpoint


def replace_link(link: Path, target: Path) -> None:
    """Let a symbolic link point elsewhere; it becomes a copy where links can't be made."""
    with replacing(link) as partial:
        try:
            partial.symlink_to(os.path.relpath(target, link.parent))
        except OSError:  # Windows asks for a permission, some file systems have none
            shutil.copy(target, partial)


def name_again(path: Path, name: Path) -> None:
    """Give a file a second name, which stays when the first is given to another; a copy where files have but one."""
    if name.exists() and name.samefile(path):
        return
    with replacing(name) as partial:
        try:
            partial.hardlink_to(path.resolve())
        except OSError:  # FAT has none, other file systems are another disk
            shutil.copy(path, partial)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a name to write to, in the same folder; what is written there takes the place of `path` at once.

    Raises:
        OSError: it can't be written; the message names `path` and the reason.
    """
    partial = path.with_name(path.name + PARTIAL)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)  # a link that a killed run left would be written through
        yield partial
        sync(partial)
        partial.replace(path)
        if os.name == "posix":
            sync(path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        partial.unlink(missing_ok=True)  # on a full disk, its space is needed


def sync(path: Path) -> None:
    """Return when what the file or the folder holds is on the disk."""
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
