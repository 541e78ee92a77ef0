"""Checkpoints in one file."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import torch

from vrft.training.checkpoint_io import AtomicCheckpointIO


def test_the_ranks_of_a_machine_share_one_copy_of_a_checkpoint(tmp_path: Path) -> None:
    """Each rank reads it to resume. What a rank then writes is its own."""
    path = tmp_path / "last.ckpt"
    checkpoint = {"state_dict": {"a": torch.ones(4096)}, "optimizer_states": [], "callbacks": {"best": torch.ones(1)}}
    AtomicCheckpointIO().save_checkpoint(checkpoint, path)
    content = path.read_bytes()
    read = AtomicCheckpointIO().load_checkpoint(path)
    if sys.platform == "linux":
        assert str(path) in Path("/proc/self/maps").read_text()
    read["state_dict"]["a"].mul_(2)
    assert path.read_bytes() == content
    AtomicCheckpointIO().save_checkpoint({"state_dict": {}, "optimizer_states": []}, path)  # the next checkpoint
    assert read.pop("state_dict")["a"].sum() == 2 * 4096
    gc.collect()
    if sys.platform == "linux":
        assert str(path) not in Path("/proc/self/maps").read_text()  # what callbacks keep is not mapped
    assert read["callbacks"]["best"] == 1
