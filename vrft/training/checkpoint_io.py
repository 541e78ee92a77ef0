"""Atomic writing and safe reading of checkpoints."""

from __future__ import annotations

import copy
import importlib
import pickle
import re
import struct
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from vrft.errors import ConfigurationError
from vrft.run_dir import UNSHARDED, is_sharded
from vrft.training.sharded_checkpoint import load_whole
from vrft.utils.files import atomic_write, remove_folder

LOW_BIT_OPTIMIZERS = "torchao.optim"
"""Module that allows `torch.load` to make tensors of its classes when it is imported."""

REFERENCE = "reference"
"""Key of the moving average of the weights that `vrft.training.moving_reference` keeps."""

MAPPED = ("state_dict", "optimizer_states", REFERENCE)
"""Keys of large tensors, which stay mapped from the file until their values are copied to the run's own tensors."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary file and renames it, so that a kill never leaves a partial checkpoint."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        with atomic_write(Path(path)) as partial, partial.open("wb") as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:  # torch's zip writer hides the OSError of a failed write
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint of a run. `weights_only` is always true, so that nothing in the file is executed.

        Raises:
            ConfigurationError: the file is no checkpoint of a run, or it is damaged.
        """
        if is_sharded(Path(path)):
            return load_whole(self.read(Path(path, UNSHARDED), map_location), Path(path))
        return self.read(Path(path), map_location)

    def load_weights(self, path: Path) -> dict[str, Any]:
        """Read a checkpoint for its weights: the optimizer states of a sharded one are left out.

        Raises:
            ConfigurationError: the file is no checkpoint of a run, or it is damaged.
        """
        if is_sharded(path):
            return load_whole(self.read(path / UNSHARDED), path, weights_alone=True)
        return self.read(path)

    def remove_checkpoint(self, path: str | Path) -> None:
        if Path(path).is_symlink() and is_sharded(Path(path)):
            remove_folder(Path(path))
        else:
            super().remove_checkpoint(path)

    def read(self, path: Path, map_location: Any = None) -> dict[str, Any]:
        """Read one file, which of a sharded checkpoint is that without the shards.

        Raises:
            ConfigurationError: the file is no checkpoint of a run, or it is damaged.
        """
        if not path.is_file() or not zipfile.is_zipfile(path):  # torch would try to unpickle older formats
            raise ConfigurationError(f"ckpt_path: {path} is not a checkpoint, or it is incomplete")
        check_sums(path)
        try:
            checkpoint = load_tensors(path, map_location or "cpu")
        except ConfigurationError:
            raise
        except pickle.UnpicklingError as error:
            found = re.search(r"GLOBAL ([\w.]+)", str(error))
            code = f"code: {found[1]}" if found else "code"
            raise ConfigurationError(f"ckpt_path: {path} is refused, because loading it would run {code}") from error
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError, EOFError) as error:
            raise ConfigurationError(f"ckpt_path: {path} is damaged: {str(error).partition(chr(10))[0]}") from error
        if not isinstance(checkpoint, dict) or not {"state_dict", "optimizer_states"} <= checkpoint.keys():
            raise ConfigurationError(f"ckpt_path: {path} is not a checkpoint of a run: it has no optimizer_states")
        return {key: value if key in MAPPED else copy.deepcopy(value) for key, value in checkpoint.items()}


def load_tensors(path: Path, map_location: Any) -> Any:
    """Read a file without running code of it. States of torchao's optimizers are tensors of classes that it allows.

    The tensors are mapped from the file, so that the ranks of a machine share one copy of it. Writing to one doesn't
    change the file, which a newer checkpoint replaces but never overwrites.

    Raises:
        ConfigurationError: it has such states, and torchao is not installed.
        pickle.UnpicklingError: loading it would run code.
    """
    try:
        return torch.load(path, map_location, weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        if f"GLOBAL {LOW_BIT_OPTIMIZERS}." not in str(error) or LOW_BIT_OPTIMIZERS in sys.modules:
            raise
        try:
            importlib.import_module(LOW_BIT_OPTIMIZERS)
        except ImportError as missing:
            raise ConfigurationError(
                f"ckpt_path: {path} has states of torchao's optimizers: pip install 'torchao>=0.18,<0.19'"
            ) from missing
    return torch.load(path, map_location, weights_only=True, mmap=True)


def check_sums(path: str | Path) -> None:
    """Check the checksum of every part of a checkpoint before any of it is read.

    Raises:
        ConfigurationError: one is wrong, or the parts are not stored as torch stores them, uncompressed.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
                raise ConfigurationError(f"ckpt_path: {path} is damaged: it has compressed parts, unlike a checkpoint")
            wrong = archive.testzip()
    except ConfigurationError:
        raise
    except (zipfile.BadZipFile, EOFError, RuntimeError, ValueError, struct.error) as error:
        raise ConfigurationError(f"ckpt_path: {path} is damaged: {error}") from error
    if wrong is not None:
        raise ConfigurationError(f"ckpt_path: {path} is damaged: the checksum of {wrong} is wrong")
