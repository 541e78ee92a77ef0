"""A sharded checkpoint is whole or refused, and a save that is killed or fails leaves the last one."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from vrft.errors import ConfigurationError
from vrft.training import sharded_checkpoint
from vrft.training.checkpoint_io import AtomicCheckpointIO
from vrft.training.sharded_checkpoint import load_shards, save_shards, shards_of, write_shards
from vrft.utils.files import hardlink, remove_unpublished

TRAINER: Any = SimpleNamespace(
    is_global_zero=True,
    global_rank=0,
    strategy=SimpleNamespace(
        root_device=torch.device("cpu"), reduce=lambda value, reduce_op: value, broadcast=lambda value, src=0: value
    ),
)
"""What a save needs of a trainer with one rank."""


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeviceMesh]:
    store = dist.FileStore(str(tmp_path_factory.mktemp("store") / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def content(mesh: DeviceMesh, value: float) -> dict[str, Any]:
    def sharded(number: float) -> DTensor:
        return distribute_tensor(torch.full((4, 3), number), mesh, [Shard(0)])

    state = {"a.weight": {"step": torch.tensor(2.0), "exp_avg": sharded(value + 1)}}
    optimizer = {"state": state, "param_groups": [{"params": ["a.weight"], "lr": 0.1}]}
    weights = {"a.weight": sharded(value), "steps_done": torch.tensor(3)}
    return {"state_dict": weights, "optimizer_states": [optimizer], "epoch": 1}


def assert_holds(path: Path, value: float) -> None:
    found = AtomicCheckpointIO().load_checkpoint(path)
    assert found.keys() == {"state_dict", "optimizer_states", "epoch"}
    assert (found["state_dict"]["a.weight"] == torch.full((4, 3), value)).all()
    assert found["state_dict"]["steps_done"] == 3
    state = found["optimizer_states"][0]["state"]["a.weight"]
    assert (state["exp_avg"] == torch.full((4, 3), value + 1)).all()
    assert state["step"] == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
@pytest.mark.parametrize("place", ["save_rest", "publish_folder"])
def test_a_save_that_ends_early_leaves_the_last_one(
    mesh: DeviceMesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, error: Any
) -> None:
    path = tmp_path / "last.ckpt"
    for value in (1.0, 2.0):
        write_shards(TRAINER, content(mesh, value), path)

    def end(*_: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(sharded_checkpoint, place, end)
        with pytest.raises((KeyboardInterrupt, OSError)):
            write_shards(TRAINER, content(mesh, 3.0), path)
    assert_holds(path, 2.0)
    remove_unpublished(tmp_path, "*.ckpt")
    assert len([*tmp_path.iterdir()]) == 2  # the link and its folder
    write_shards(TRAINER, content(mesh, 4.0), path)
    assert_holds(path, 4.0)


def test_a_second_name_survives_and_both_can_be_removed(mesh: DeviceMesh, tmp_path: Path) -> None:
    last, best = tmp_path / "last.ckpt", tmp_path / "step=2.ckpt"
    write_shards(TRAINER, content(mesh, 1.0), last)
    hardlink(last, best)
    for value in (2.0, 3.0):
        write_shards(TRAINER, content(mesh, value), last)
    assert_holds(best, 1.0)
    assert_holds(last, 3.0)
    AtomicCheckpointIO().save_checkpoint({"state_dict": {}, "optimizer_states": []}, last)
    remove_unpublished(tmp_path, "*.ckpt")
    AtomicCheckpointIO().remove_checkpoint(best)
    assert [*tmp_path.iterdir()] == [last]


def test_a_file_that_cannot_be_written_is_an_os_error(mesh: DeviceMesh, tmp_path: Path) -> None:
    (tmp_path / "shard-00001-model-00001-of-00001.safetensors").mkdir()
    with pytest.raises(OSError, match="Is a directory"):
        save_shards(content(mesh, 1.0), tmp_path)


def test_damage_is_refused(mesh: DeviceMesh, tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    write_shards(TRAINER, content(mesh, 1.0), path)
    (shard,) = path.glob("*.safetensors")
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-4])
    with pytest.raises(ConfigurationError, match="is damaged"):
        AtomicCheckpointIO().load_checkpoint(path)
    shard.unlink()
    with pytest.raises(ConfigurationError, match=r"a shard of state_dict/a\.weight is missing"):
        AtomicCheckpointIO().load_checkpoint(path)
    shard.write_bytes(whole)
    (path / "run.pt").write_bytes(pickle.dumps({}))
    with pytest.raises(ConfigurationError, match="is not a checkpoint, or it is incomplete"):
        AtomicCheckpointIO().load_checkpoint(path)


def test_shards_of_another_shape_are_refused(mesh: DeviceMesh, tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    write_shards(TRAINER, content(mesh, 1.0), path)
    rest = AtomicCheckpointIO().read(path / "run.pt")
    targets = {place: distribute_tensor(torch.ones(8, 3), mesh, [Shard(0)]) for place in shards_of(content(mesh, 0.0))}
    with pytest.raises(ConfigurationError, match=r"has shape \[4, 3\], expected \[8, 3\]"):
        load_shards(rest, path, targets)
