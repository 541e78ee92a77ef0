"""Write checkpoints atomically and read them safely."""

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
"""Module that, when imported, registers its tensor classes as safe for `torch.load`."""

REFERENCE = "reference"
"""Key of the moving average of the weights, see `vrft.training.moving_reference`."""

MAPPED = ("state_dict", "optimizer_states", REFERENCE)
"""Keys of large tensors, which stay memory-mapped until their values are copied to the run's tensors."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary file and renames it, so that a killed run never leaves a partial checkpoint."""

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
        """Read a checkpoint of a run. `weights_only` is ignored and always true, so that no code in the file runs.

        Raises:
            ConfigurationError: the file is not a checkpoint of a run, or is damaged.
        """
        if is_sharded(Path(path)):
            return load_whole(self.read(Path(path, UNSHARDED), map_location), Path(path))
        return self.read(Path(path), map_location)

    def load_weights(self, path: Path) -> dict[str, Any]:
        """Read a checkpoint for its weights, leaving out the optimizer states of a sharded checkpoint.

        Raises:
            ConfigurationError: the file is not a checkpoint of a run, or is damaged.
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
        """Read the file of a checkpoint, or the unsharded part of a sharded checkpoint.

        Raises:
            ConfigurationError: the file is not a checkpoint of a run, or is damaged.
        """
        if not path.is_file() or not zipfile.is_zipfile(path):  # torch would unpickle older formats
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
    """Read a file without running code in it, allowing the tensor classes of torchao's optimizer states.

    The tensors are memory-mapped, so that the ranks of a machine share one copy of the file. Writing to them does not
    change the file, which a newer checkpoint replaces but never overwrites.

    Raises:
        ConfigurationError: the file has states of torchao's optimizers, and torchao is not installed.
        pickle.UnpicklingError: loading the file would run code.
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
    """Check the checksums of all parts of a checkpoint before any part is loaded.

    Raises:
        ConfigurationError: a checksum is wrong, or parts are compressed, unlike torch's.
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
