"""Checkpoints that all ranks write together: a folder with the shards of each rank as safetensors.

The format is that of `torch.distributed.checkpoint`, which can read a part of any tensor on any number of ranks.
Unsharded content is in one file, with the names and shapes of the sharded tensors.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed.checkpoint as dcp
from lightning.pytorch import Trainer
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException, HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.tensor import DTensor

from vrft.errors import ConfigurationError
from vrft.run_dir import UNSHARDED
from vrft.utils.distributed import on_rank_zero
from vrft.utils.files import publish_folder, spare_folder, sync

SHARDS = "shards"
"""Key, in the unsharded part of a checkpoint, of the place and shape of each sharded tensor by name in the shards."""

Place = tuple[str | int, ...]
"""Keys that lead to a tensor in a checkpoint, e.g. ("optimizer_states", 0, "state", parameter, "exp_avg")."""


def tensors_of(checkpoint: Mapping[str, Any]) -> Iterator[tuple[Place, Any]]:
    """Yield the place and the value of each weight and optimizer state of a checkpoint."""
    for name, value in checkpoint["state_dict"].items():
        yield ("state_dict", name), value
    for i, states in enumerate(checkpoint["optimizer_states"]):
        for name, fields in states["state"].items():
            for field, value in fields.items():
                yield ("optimizer_states", i, "state", name, field), value


def shards_of(checkpoint: Mapping[str, Any]) -> dict[Place, Tensor]:
    """Return the sharded tensors of a checkpoint by place."""
    return {place: value for place, value in tensors_of(checkpoint) if isinstance(value, DTensor)}


def key_of(place: Place) -> str:
    """Return the name of a tensor in the shards."""
    return "/".join(map(str, place))


def container_of(checkpoint: dict[str, Any], place: Place) -> dict[Any, Any]:
    """Return the dictionary that contains the tensor at a place."""
    container: Any = checkpoint
    for step in place[:-1]:
        container = container[step]
    return container


def write_shards(trainer: Trainer, checkpoint: dict[str, Any], path: Path) -> None:
    """Write a sharded checkpoint, which replaces the one at `path` once it is complete on all ranks.

    Raises:
        OSError: a rank can't write. All ranks raise it, and `path` is unchanged.
    """
    folders: list[Path] = []
    on_rank_zero(trainer, lambda: folders.append(spare_folder(path)))
    folder: Path = trainer.strategy.broadcast(folders)[0]
    try:
        save_shards(checkpoint, folder)
        on_rank_zero(trainer, save_rest, checkpoint, folder)
    except OSError:
        on_rank_zero(trainer, shutil.rmtree, folder)  # free the space if the disk is full
        raise
    on_rank_zero(trainer, publish_folder, path, folder)


def save_shards(checkpoint: dict[str, Any], folder: Path) -> None:
    """Write the shards of all ranks to a folder, and remove them from the checkpoint. All ranks call this together.

    Raises:
        OSError: a rank can't write. All ranks raise it.
    """
    shards = shards_of(checkpoint)
    for place in shards:
        container_of(checkpoint, place).pop(place[-1])
    checkpoint[SHARDS] = {key_of(place): (place, tuple(value.shape)) for place, value in shards.items()}
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        dcp.save({key_of(place): value for place, value in shards.items()}, storage_writer=writer)
    except CheckpointException as error:
        causes = [cause for cause, _ in error.failures.values() if isinstance(cause, OSError)]
        if not causes:
            raise
        raise OSError(causes[0].errno, causes[0].strerror, str(folder)) from error


def save_rest(checkpoint: dict[str, Any], folder: Path) -> None:
    """Write the unsharded part of a checkpoint."""
    with (folder / UNSHARDED).open("wb") as file:
        torch.save(checkpoint, file)
    sync(folder / UNSHARDED)


def check_shards(checkpoint: Mapping[str, Any], folder: Path) -> dict[str, torch.dtype]:
    """Check that the shards in a folder are complete. A missing shard would leave part of a tensor unread.

    Returns:
        The dtype of each tensor by name in the shards.

    Raises:
        ConfigurationError: a shard is missing or damaged.
    """
    if special := [path.name for path in folder.iterdir() if not path.is_file()]:
        raise ConfigurationError(f"ckpt_path: {folder} is damaged: {special[0]} is not a regular file")
    try:
        stored = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    except SafetensorError as error:
        raise ConfigurationError(f"ckpt_path: {folder} is damaged: {error}") from error
    dtypes = {}
    for key, (_, shape) in checkpoint[SHARDS].items():
        entry = cast(TensorStorageMetadata, stored.get(key))
        if entry is None or sum(math.prod(chunk.sizes) for chunk in entry.chunks) != math.prod(shape):
            raise ConfigurationError(f"ckpt_path: {folder} is incomplete: a shard of {key} is missing")
        dtypes[key] = entry.properties.dtype
    return dtypes


def load_whole(checkpoint: dict[str, Any], folder: Path, *, weights_alone: bool = False) -> dict[str, Any]:
    """Read full tensors from shards into a checkpoint that `save_shards` wrote. Each rank reads independently.

    Args:
        checkpoint: the unsharded part of the checkpoint.
        folder: the folder with the shards.
        weights_alone: leave out the optimizer states.
    """
    dtypes = check_shards(checkpoint, folder)
    chosen = {
        key: (place, torch.empty(shape, dtype=dtypes[key]))
        for key, (place, shape) in checkpoint.pop(SHARDS).items()
        if place[0] == "state_dict" or not weights_alone
    }
    reader = HuggingFaceStorageReader(str(folder))
    dcp.load({key: value for key, (_, value) in chosen.items()}, storage_reader=reader, no_dist=True)
    for place, value in chosen.values():
        container_of(checkpoint, place)[place[-1]] = value
    return checkpoint


def load_shards(checkpoint: dict[str, Any], folder: Path, targets: Mapping[Place, Tensor]) -> dict[str, Any]:
    """Read each rank's shards into `targets`, and add `targets` to a checkpoint. All ranks call this together.

    Args:
        checkpoint: the unsharded part of the checkpoint.
        folder: the folder with the shards.
        targets: sharded tensors of the run by place.

    Raises:
        ConfigurationError: a shard is missing, or its shape differs from its target's.
    """
    check_shards(checkpoint, folder)
    wanted: dict[str, Tensor] = {}
    for key, (place, shape) in checkpoint.pop(SHARDS).items():
        target = targets.get(place)
        if target is not None:
            if target.shape != torch.Size(shape):
                raise ConfigurationError(
                    f"ckpt_path: made with other model settings: {key} has shape {[*shape]}, expected {[*target.shape]}"
                )
            wanted[key] = target
        if target is not None or place[0] == "state_dict":  # the module later refuses unknown weights
            container_of(checkpoint, place)[place[-1]] = target
    dcp.load(wanted, storage_reader=HuggingFaceStorageReader(str(folder)))
    return checkpoint
