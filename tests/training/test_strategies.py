"""What strategies move between the CPU and a GPU, for which the meta device stands in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins import TorchSyncBatchNorm
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from vrft.training import lightning_internals
from vrft.training.strategies import FSDP2Strategy


@pytest.fixture
def _one_rank(tmp_path: Path) -> Iterator[None]:
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("_one_rank")
def test_offloaded_shards_stay_in_cpu_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of the module moves: buffers, and reward models, which no rank shards."""
    policy, reward = nn.Linear(4, 3), nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    reward[1].weight = reward[0].weight
    policy.register_buffer("positions", torch.arange(4))
    fully_shard(policy, mesh=init_device_mesh("cpu", (1,)), offload_policy=CPUOffloadPolicy(pin_memory=False))
    strategy = FSDP2Strategy(offload=True)
    monkeypatch.setattr(FSDP2Strategy, "root_device", torch.device("meta"))
    strategy.model = nn.ModuleList([policy, reward])
    strategy.model_to_device()
    for shard in policy.parameters():
        assert isinstance(shard, DTensor)
        assert shard.device == shard.to_local().device == torch.device("cpu")
    assert policy.positions.is_meta
    assert reward[1].weight is reward[0].weight
    assert all(parameter.is_meta for parameter in reward.parameters())


@pytest.mark.parametrize(
    ("offload", "device", "chosen", "backend"),
    [
        (True, "cuda", None, "cpu:gloo,cuda:nccl"),
        (True, "cuda", "cpu:gloo,cuda:ucc", "cpu:gloo,cuda:ucc"),  # the user's own
        (False, "cuda", None, None),  # Lightning's default, NCCL
        (True, "cpu", None, None),  # gloo, without NCCL
    ],
)
def test_ranks_reduce_offloaded_gradients_on_the_cpu(
    offload: bool, device: str, chosen: str | None, backend: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NCCL has no collectives for CPU tensors, so the norm of the gradients could not be reduced."""
    monkeypatch.setattr(ModelParallelStrategy, "setup_environment", lambda self: None)
    at_exit: list[Any] = []
    monkeypatch.setattr(lightning_internals.atexit, "register", at_exit.append)
    strategy = FSDP2Strategy(offload=offload, process_group_backend=chosen)
    strategy.parallel_devices = [torch.device(device)] * 2
    strategy.setup_environment()
    assert strategy.process_group_backend == backend
    # Lightning destroys groups of "nccl" alone.
    assert at_exit == ([lightning_internals._destroy_dist_connection] if chosen != backend else [])


@pytest.mark.parametrize("fits", [True, False], ids=["fit", "validate"])
def test_ddp_undoes_the_synchronization_of_batch_norms(fits: bool) -> None:
    """Later stages, and the export, run them without other ranks."""
    strategy: Any = StrategyRegistry.get("ddp")
    module: Any = LightningModule()
    module.norm = nn.SyncBatchNorm(2)
    module.norm.weight.data.fill_(3)
    module._trainer = SimpleNamespace(state=SimpleNamespace(fn=TrainerFn.FITTING if fits else TrainerFn.VALIDATING))
    for part in ("cluster_environment", "precision_plugin", "accelerator", "checkpoint_io"):
        setattr(strategy, part, SimpleNamespace(teardown=lambda: None))
    strategy._lightning_module, strategy.model = module, nn.Sequential(module)
    strategy._layer_sync = TorchSyncBatchNorm()
    strategy.teardown()
    assert strategy.model is module
    assert isinstance(module.norm, nn.SyncBatchNorm) == (not fits)
    assert module.norm.weight.tolist() == [3, 3]


def test_ddp_leaves_weights_and_optimizer_states_on_the_gpu() -> None:
    """At the end of a run, every rank of a machine would need memory for them on the CPU."""
    strategy: Any = StrategyRegistry.get("ddp")
    module = LightningModule()
    module.weight = nn.Parameter(torch.zeros(2, 3, device="meta"))
    optimizer = torch.optim.Adam(module.parameters())
    optimizer.state[module.weight] = {"exp_avg": torch.zeros(2, 3, device="meta")}
    done: list[str] = []
    parts = ["cluster_environment", "precision_plugin", "accelerator", "checkpoint_io"]
    for part in parts:
        setattr(strategy, part, SimpleNamespace(teardown=lambda part=part: done.append(part)))
    strategy._lightning_module, strategy.model, strategy.optimizers = module, nn.Sequential(module), [optimizer]
    strategy.teardown()
    assert strategy.model is module
    assert module.weight.is_meta
    assert optimizer.state[module.weight]["exp_avg"].is_meta
    assert done == parts
