"""FSDP2 for any Hugging Face model, and the communication between ranks under each strategy.

Only `parallelism_of` distinguishes strategies.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, StrategyRegistry
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.fsdp import register_fsdp_forward_method as also_forward
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from vrft.errors import ConfigurationError
from vrft.indices import buckets
from vrft.policy import Policy
from vrft.policy.placement import allocate, read_once, replicate, replicate_buffers, scatter, take_weights
from vrft.policy.sharding import FULL_STATE, decoder_modules, fsdp_modules, make_root
from vrft.policy.weights import replace_parameters
from vrft.run_dir import UNSHARDED, is_sharded
from vrft.training.checkpoint_io import AtomicCheckpointIO
from vrft.training.lightning_internals import (
    destroy_process_group_at_exit,
    set_data_parallel_size,
    set_process_group_backend,
    unsynchronize_layers,
)
from vrft.training.sharded_checkpoint import Place, load_shards, shards_of, write_shards

ALLREDUCE_BUCKET_BYTES = 64 * 2**20
"""Bytes of gradients per all-reduce. Each message costs a round trip, so small gradients are combined."""


class FSDP2Strategy(ModelParallelStrategy):
    """FSDP2 over all ranks: each rank has a shard of each weight; `--trainer.strategy=fsdp2`.

    A checkpoint is one file, as on one device, with full trainable weights and optimizer states by name. With
    `save_distributed_checkpoint`, it is a folder to which each rank writes its shards, so that no rank needs the memory
    for full weights.
    """

    def __init__(
        self,
        offload: bool = False,
        gather: Literal["rollout", "layer"] = "rollout",
        save_distributed_checkpoint: bool = False,
        **kwargs: Any,
    ) -> None:
        """Shard over all ranks.

        Args:
            offload: keep shards and optimizer states in CPU memory.
            gather: what each rank gathers for sampling: the whole model once per rollout, or one decoder layer at a
                time for every token, which is much slower but works for models that are larger than a GPU.
            save_distributed_checkpoint: write sharded checkpoints, for models whose weights and optimizer states do not
                fit in the memory of one rank.
            kwargs: `process_group_backend` and `timeout` of Lightning's ModelParallelStrategy.
        """
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=save_distributed_checkpoint, **kwargs)
        self.offload, self.gather = offload, gather
        self.saves_shards = save_distributed_checkpoint

    def setup_environment(self) -> None:
        set_data_parallel_size(self, self.num_nodes * self.num_processes)
        on_gpus = any(device.type == "cuda" for device in self.parallel_devices or ())
        if self.offload and on_gpus and self.process_group_backend is None:
            # NCCL can't reduce the norm of offloaded gradients, which are on the CPU
            set_process_group_backend(self, "cpu:gloo,cuda:nccl")
            destroy_process_group_at_exit()
        super().setup_environment()

    def shard(self, policy: Policy) -> None:
        """Shard a policy that has just been read: each block separately, and the rest together."""
        weights = take_weights(policy)
        mesh: DeviceMesh = self.device_mesh["data_parallel"]
        precision = MixedPrecisionPolicy(
            param_dtype=policy.dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        offload = CPUOffloadPolicy() if self.offload else OffloadPolicy()
        layers = decoder_modules(policy.models)
        for module in (*blocks(policy), policy):
            reshard = module in layers
            fully_shard(
                module, mesh=mesh, mp_policy=precision, offload_policy=offload, reshard_after_forward=reshard
            ).set_reshard_after_backward(reshard, recurse=False)
        # ranks have different numbers of images, so modules that run once per image stay gathered until the backward
        self.per_image = [module for module in fsdp_modules(policy) if module not in layers]
        policy.gather_per_layer = self.gather == "layer"
        also_forward(policy, "prepare")
        allocate(policy, torch.device("cpu") if self.offload else self.root_device)
        make_root(policy)
        scatter(policy, weights, self.root_device)
        for model in policy.children():
            replicate_buffers(model, self.root_device)

    def model_to_device(self) -> None:
        """Move parameters to the device, except offloaded shards.

        FSDP moves offloaded shards to the GPU when needed. After `Module.to`, their DTensors would claim to be on the
        GPU: gradients could not be assigned, and the optimizer would use GPU kernels.
        """
        if not self.offload:
            super().model_to_device()
            return
        assert self.model is not None
        replace_parameters(self.model, self._moved)
        for module in self.model.modules():
            for name, buffer in [*module.named_buffers(recurse=False)]:
                setattr(module, name, buffer.to(self.root_device))

    def _moved(self, parameter: nn.Parameter) -> nn.Parameter:
        """Return a parameter on this rank's device. Return a shard unchanged."""
        if isinstance(parameter, DTensor):
            return parameter
        return nn.Parameter(parameter.to(self.root_device), parameter.requires_grad)

    def post_backward(self, closure_loss: Tensor) -> None:
        super().post_backward(closure_loss)
        for module in self.per_image:
            module.reshard()

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    @property
    def saved_state(self) -> StateDictOptions:
        """Options for the state dicts in checkpoints."""
        return replace(FULL_STATE, full_state_dict=not self.saves_shards)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.model is not None
        return get_model_state_dict(self.model, options=self.saved_state)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        assert self.model is not None
        return get_optimizer_state_dict(self.model, plain(optimizer), options=self.saved_state)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        assert self.lightning_module is not None
        if self.saves_shards:
            write_shards(self.lightning_module.trainer, checkpoint, Path(filepath))
        elif self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        path = Path(checkpoint_path)
        if not is_sharded(path):
            return self.checkpoint_io.load_checkpoint(path, weights_only=weights_only)
        return load_shards(AtomicCheckpointIO().read(path / UNSHARDED), path, self.own_shards())

    def own_shards(self) -> dict[Place, Tensor]:
        """Return the shards of this rank's trained weights and optimizer states, by place in a checkpoint."""
        assert self.model is not None
        model, options = self.model, StateDictOptions(ignore_frozen_params=True)
        states = [get_optimizer_state_dict(model, plain(optimizer), options=options) for optimizer in self.optimizers]
        return shards_of({"state_dict": get_model_state_dict(model, options=options), "optimizer_states": states})

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.model is not None
        weights = checkpoint["state_dict"]
        options = StateDictOptions(full_state_dict=not has_shards(weights.values()), strict=False)
        set_model_state_dict(self.model, weights, options=options)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        assert self.model is not None
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            tensors = [value for fields in state["state"].values() for value in fields.values()]
            options = StateDictOptions(full_state_dict=not has_shards(tensors), strict=False)
            set_optimizer_state_dict(self.model, optimizer, state, options=options)


def plain(optimizer: Optimizer) -> Optimizer:
    """Return the torch optimizer that Lightning's wrapper contains."""
    return optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer


def has_shards(tensors: Iterable[Tensor]) -> bool:
    """Return whether any tensor is sharded."""
    return any(isinstance(tensor, DTensor) for tensor in tensors)


StrategyRegistry.register(
    "fsdp2", FSDP2Strategy, description="FSDP2: weights, gradients and optimizer states are sharded"
)


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Yield decoder layers, vision blocks and the entries of all other outermost ModuleLists."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from blocks(child)


class ResidentDDPStrategy(DDPStrategy):
    """DDP that keeps weights and optimizer states on the GPU when a stage ends; `--trainer.strategy=ddp`.

    Lightning's strategy moves both to CPU memory, on all ranks of a machine at once.
    """

    def teardown(self) -> None:
        assert self.cluster_environment is not None
        assert self.accelerator is not None
        self.model = self.lightning_module  # unwrapped from DistributedDataParallel
        unsynchronize_layers(self)
        self.cluster_environment.teardown()
        self.precision_plugin.teardown()
        self.accelerator.teardown()
        self.checkpoint_io.teardown()


StrategyRegistry.register(
    "ddp",
    ResidentDDPStrategy,
    description="DDP: each rank has a full replica",
    override=True,
    start_method="popen",
)


class SingleProcess:
    """Training on one rank, without communication. Subclasses define how several ranks train together.

    Attributes:
        waits_for_all_ranks: whether each forward and backward is a collective, so that ranks must run equally many.
        numbers_optimizer_states: whether optimizer states are loaded by parameter index instead of name.
        has_whole_weights: whether this rank has full weights, so that a forward can substitute others.
    """

    waits_for_all_ranks = False
    numbers_optimizer_states = True
    has_whole_weights = True

    def load(self, policy: Policy, keep_reference: bool) -> None:
        """Load a policy. All ranks call this together; one of them reads the checkpoint."""
        policy.load(keep_reference)

    def no_sync(self) -> AbstractContextManager[Any]:
        """Return a context in which a backward does not exchange gradients."""
        return nullcontext()

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace gradients by their mean over ranks."""

    def rounds(self, count: int) -> int:
        """Return the number of micro-batches that this rank must run, given that it has `count`."""
        return count


class ReplicatedRanks(SingleProcess):
    """DDP: each rank has full weights. Numbers of micro-batches may differ, so gradients are averaged in the step."""

    def __init__(self, strategy: DDPStrategy) -> None:
        self.strategy = strategy

    def load(self, policy: Policy, keep_reference: bool) -> None:
        if policy.loads_alone:
            policy.load(keep_reference)
            return
        read_once(policy, keep_reference)
        for model in policy.models:
            replicate(policy, model, self.strategy.root_device)
        assert self.strategy.lightning_module is not None
        keep_out_of_buckets(self.strategy.lightning_module, policy)

    def no_sync(self) -> AbstractContextManager[Any]:
        return self.strategy.block_backward_sync()

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """All-reduce gradients in buckets. A parameter that a rank did not use counts with gradient 0."""
        for part in buckets([parameter.nbytes for parameter in parameters], ALLREDUCE_BUCKET_BYTES):
            bucket = parameters[part]
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
            mean = torch.cat([gradient.flatten() for gradient in gradients]).div_(self.strategy.world_size)
            dist.all_reduce(mean)
            for parameter, share in zip(bucket, mean.split([p.numel() for p in bucket]), strict=True):
                parameter.grad = share.view_as(parameter)


def keep_out_of_buckets(module: nn.Module, policy: Policy) -> None:
    """Make DistributedDataParallel ignore the parameters of a policy, except the smallest trainable one.

    DistributedDataParallel would broadcast them again and keep a second copy of all gradients in buckets that are never
    used, because `average_gradients` averages. It refuses a module without trainable parameters.

    Args:
        module: the module to be wrapped. Its other parameters, and all buffers, are broadcast.
        policy: the module's policy, with the same values on all ranks.
    """
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    kept = min(trained, key=Tensor.numel)  # `min` returns the first of the smallest, the same on all ranks
    parameters = {*policy.parameters()} - {kept}
    named = module.named_parameters(remove_duplicate=False)
    ignored = [name for name, parameter in named if parameter in parameters]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, ignored)


class ShardedRanks(SingleProcess):
    """FSDP2: each rank has a shard of each weight, and FSDP reduces gradients itself."""

    waits_for_all_ranks = True
    numbers_optimizer_states = False
    has_whole_weights = False

    def __init__(self, strategy: FSDP2Strategy) -> None:
        self.strategy = strategy

    def load(self, policy: Policy, keep_reference: bool) -> None:
        if policy.reader.in_four_bits:
            raise ConfigurationError(
                "trainer.strategy: fsdp2 can't shard weights in four bits; ddp can train with them"
            )
        if policy.loads_alone:
            raise ConfigurationError("trainer.strategy: fsdp2 can't start from model.policy.lora.adapter; ddp can")
        read_once(policy, keep_reference)
        if policy.reference is not None and policy.offload_reference:
            replicate(policy, policy.reference, self.strategy.root_device)
        self.strategy.shard(policy)

    def rounds(self, count: int) -> int:
        """Return the maximum of `count` over all ranks."""
        device = self.strategy.root_device
        return int(self.strategy.reduce(torch.tensor(float(count), device=device), reduce_op="max"))


def parallelism_of(trainer: Trainer) -> SingleProcess:
    """Return the communication between the ranks of a trainer."""
    if isinstance(trainer.strategy, FSDP2Strategy):
        return ShardedRanks(trainer.strategy)
    if isinstance(trainer.strategy, DDPStrategy):
        return ReplicatedRanks(trainer.strategy)
    return SingleProcess()
