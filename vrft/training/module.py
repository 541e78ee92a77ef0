"""What reinforcement and supervised fine-tuning have in common: policy, generation, scores, optimizer, checkpoints."""

from __future__ import annotations

import random
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, cast
from uuid import uuid4

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torchmetrics import MeanMetric

from vrft.data.datamodule import ResumableLoader, VisionData
from vrft.errors import ConfigurationError
from vrft.policy import Policy
from vrft.policy.processor import Encoder, MicroBatch
from vrft.rewards import Reward
from vrft.rollout import RemoteEngine, RolloutEngine, Sampling, SamplingKey
from vrft.tasks import Task
from vrft.training.answer_log import AnswerLog
from vrft.training.prefetch import RolloutPrefetcher, check_logprob_gap
from vrft.training.progress_bar import phase
from vrft.training.strategies import FSDP2Strategy
from vrft.types import Answer, PromptBatch, Rollout, Sample
from vrft.utils.distributed import raise_on_all_ranks

Phase = Literal["rollout", "reward", "old", "reference", "update", "optimizer"]
Result = TypeVar("Result")

BUCKET = 64 * 2**20
"""Bytes of gradients that ranks average in one message: each costs the time of a round trip."""

SMALL = 10_000_000
"""Below this many parameters a second thread saves nothing, and on a busy machine costs a factor of ten."""


class VisionModule(LightningModule):
    """Base of `RFT` and `SFT`. Optimisation is manual: one rollout may feed several optimizer steps."""

    keep_reference = False
    group_size = 1
    """Completions of a prompt in a training step."""
    batches_per_step = 1
    """Batches of the loader that one training step gets, as one."""
    prefetches = False
    """Whether a training step has to know the batch of the next one."""
    max_tokens_per_micro_batch: int
    steps_done: Tensor

    def __init__(
        self,
        task: Task,
        policy: Policy,
        engine: RolloutEngine,
        rewards: dict[str, Reward],
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None,
        max_completion_length: int,
        max_grad_norm: float,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.strict_loading = False  # checkpoints hold what trains; `on_load_checkpoint` checks that all of it is there
        self.task, self.policy, self.engine = task, policy, engine
        self.rewards = nn.ModuleDict(rewards)
        self.held_out_reward = MeanMetric()
        self.optimizer_callable, self.lr_scheduler_callable = optimizer, lr_scheduler
        self.max_completion_length, self.max_grad_norm = max_completion_length, max_grad_norm
        self.seed = torch.initial_seed() % 2**32
        self.sharing_checked = False
        self.answer_log: AnswerLog | None = None
        self.prefetcher = RolloutPrefetcher()
        self.weights_changed = True  # since a remote engine was given them
        self.engine_checked = False
        self.rows_at_once = sys.maxsize  # in a rollout; less once memory did not suffice
        self.out_of_memory = 0
        self.register_buffer("steps_done", torch.zeros((), dtype=torch.long))
        if not self.rewards:
            raise ConfigurationError("model.rewards: expected at least one reward, e.g. {format: {class_path: Format}}")

    def configure_model(self) -> None:
        if self.policy.processor is None:
            self.policy.load(keep_reference=self.keep_reference)
            if isinstance(self.trainer.strategy, FSDP2Strategy):
                self.trainer.strategy.shard(self.policy)
            for reward in self.rewards.values():
                cast(Reward, reward).load()
            if sum(parameter.numel() for parameter in self.parameters()) < SMALL:
                torch.set_num_threads(1)
            if isinstance(self.engine, RemoteEngine):
                run = self.trainer.strategy.broadcast(uuid4().hex[:8])
                folder = Path(self.trainer.default_root_dir)
                raise_on_all_ranks(self.trainer, partial(self.engine.connect, self.policy, self.task, folder, run))

    @property
    def encoder(self) -> Encoder:
        """What turns samples into prompts: the loaders' collate function."""
        return self.policy.encoder(self.task)

    # ------------------------------------------------------------------------------------------------ optimisation

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer_callable(parameter for parameter in self.parameters() if parameter.requires_grad)
        if self.lr_scheduler_callable is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self.lr_scheduler_callable(optimizer)}

    def on_train_start(self) -> None:
        """Give a run that goes on the optimizer's settings and the schedule that its config has now.

        A checkpoint brings along those that the run began with: a longer one would go on where its schedule had ended.
        """
        if self.trainer.ckpt_path is None:
            return
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, Optimizer)
        for group in optimizer.param_groups:
            group.pop("initial_lr", None)
            group.update(optimizer.defaults)
        for config in self.trainer.lr_scheduler_configs:
            assert self.lr_scheduler_callable is not None
            steps = config.scheduler.last_epoch
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Detected call of `lr_scheduler")  # the steps were before
                config.scheduler = self.lr_scheduler_callable(optimizer)
                for _ in range(steps):
                    config.scheduler.step()

    def on_train_batch_start(self, batch: PromptBatch, batch_idx: int) -> None:
        self.refuse_long(batch)
        self.log("train/replaced_images", float(warn_of_replaced(batch)))
        loader = self.trainer.train_dataloader
        assert isinstance(loader, ResumableLoader)
        self.log("train/dead_workers", float(loader.dead_workers))

    def seed_step(self) -> None:
        """Every random number of a step follows from (seed, step, rank), so that a continued run is the same run."""
        seed = int(np.random.SeedSequence((self.seed, int(self.steps_done), self.global_rank)).generate_state(1)[0])
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        self.seconds: dict[str, float] = {}
        self.finite = torch.ones((), dtype=torch.bool, device=self.device)
        self.skipped_steps = self.out_of_memory = 0

    def check_sharing(self, batch: PromptBatch, ids: Tensor, mask: Tensor) -> None:
        """Once per process: compare log-probabilities with a shared prompt to the model's own; if they differ, repeat.

        `batch` has its pixels; ids and mask of completions (N, T).
        """
        if self.sharing_checked or not self.policy.shares_prefixes:
            return
        self.sharing_checked = True
        group = min(2, len(ids) // len(batch.inputs))
        gap, allowed = self.policy.sharing_gap(batch.inputs[0], ids[:group], mask[:group])
        same = self.trainer.strategy.reduce_boolean_decision(gap <= allowed, all=True)
        if not same:
            self.policy.shares_prefixes = False
            rank_zero_warn(
                f"{type(self.policy.base).__name__}: log-probabilities with a shared prompt differ from the model's "
                f"own by {gap:.2g} on average (allowed: {allowed:.2g}); going on with repeated prompts, which is slower"
            )

    def add_gradient(self, loss: Tensor) -> None:
        """Backward of a micro-batch. Ranks have different numbers of them, so that those of DDP meet in the step."""
        self.finite &= loss.detach().isfinite()
        strategy = self.trainer.strategy
        alone = strategy.block_backward_sync() if isinstance(strategy, DDPStrategy) else nullcontext()
        with alone:
            self.manual_backward(loss)

    def rounds(self, count: int) -> int:
        """How many micro-batches to go through if `count` are this rank's: where ranks share weights, the most of any.

        There every forward and backward waits for all ranks. Those beyond `count` are idle.
        """
        strategy = self.trainer.strategy
        if not isinstance(strategy, FSDP2Strategy):
            return count
        return int(strategy.reduce(torch.tensor(float(count), device=self.device), reduce_op="max"))

    def average_gradients(self) -> None:
        """The mean over the ranks of DDP, whatever part of the model each of them used."""
        if not isinstance(self.trainer.strategy, DDPStrategy):
            return
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        for part in buckets([parameter.nbytes for parameter in trained], BUCKET):
            parameters = trained[part]
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
            mean = torch.cat([gradient.flatten() for gradient in gradients]) / self.trainer.world_size
            dist.all_reduce(mean)
            for parameter, share in zip(parameters, mean.split([p.numel() for p in parameters]), strict=True):
                parameter.grad = share.view_as(parameter)

    def optimizer_step_and_log(self) -> None:
        """Clip, step, advance the schedule, forget the gradients.

        If a loss or the gradient of any rank is NaN or infinite, all of them go without this step.
        """
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        with self.phase("optimizer", 1):
            self.average_gradients()
            parameters = [parameter for parameter in self.parameters() if parameter.grad is not None]
            norm = torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
            norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
            self.log("train/learning_rate", optimizer.param_groups[0]["lr"])
            self.log("train/grad_norm", norm)
            finite = self.trainer.strategy.reduce_boolean_decision(bool(self.finite & norm.isfinite()), all=True)
            if finite:
                optimizer.step()
                self.weights_changed = True
            optimizer.zero_grad()
        self.finite.fill_(True)
        self.skipped_steps += not finite
        self.log("train/skipped_steps", float(self.skipped_steps))
        self.log("train/out_of_memory", float(self.out_of_memory), sync_dist=True, reduce_fx="sum")
        scheduler = self.lr_schedulers()
        if scheduler is not None and finite:
            scheduler.step()  # type: ignore[union-attr]

    def refuse_long(self, batch: PromptBatch) -> None:
        """Raise ConfigurationError for a prompt that leaves no room for a completion in what the model can read."""
        for sample, prompt in zip(batch.samples, batch.inputs, strict=True):
            length = prompt["input_ids"].shape[1]
            if length + self.max_completion_length > self.policy.max_positions:
                raise ConfigurationError(
                    f"sample {sample.index} (image {sample.image_id}, {sample.query!r}): {length} tokens of prompt and "
                    f"{self.max_completion_length} of completion (model.max_completion_length) are more than the "
                    f"model's {self.policy.max_positions}; model.policy.max_pixels makes images smaller"
                )

    # --------------------------------------------------------------------------------------------- memory that ends

    def halving(self, split: Callable[[], list[MicroBatch]], compute: Callable[[list[MicroBatch]], Result]) -> Result:
        """`compute` on the micro-batches that `split` makes; if memory does not suffice, smaller ones, anew.

        Its gradients are forgotten then, so there must be none from before. From here on micro-batches stay as small.

        Raises:
            torch.OutOfMemoryError: they have one row each, or other ranks wait for this one in a forward.
        """
        while True:
            work = split()
            try:
                return compute(work)
            except torch.OutOfMemoryError:
                if isinstance(self.trainer.strategy, FSDP2Strategy):
                    raise
                while split() == work:
                    if self.max_tokens_per_micro_batch == 0:
                        raise
                    self.max_tokens_per_micro_batch //= 2
            self._free_memory(f"micro-batches have at most {self.max_tokens_per_micro_batch} tokens")
            for parameter in self.parameters():
                parameter.grad = None
            self.finite.fill_(True)

    def completions(
        self,
        batch: PromptBatch,
        num_generations: int,
        sampling: Sampling,
        key: SamplingKey,
        on_token: Callable[..., None],
    ) -> Rollout:
        """The engine's, of fewer prompts and generations at a time if memory does not suffice for all.

        Raises:
            torch.OutOfMemoryError: it does not for one, or other ranks wait for this one in a forward.
            RolloutFailed: a remote engine gives none, to this rank or to another, or those of other weights.
        """
        if isinstance(self.engine, RemoteEngine):
            self.update_remote_weights(self.engine)
            settings = self.generation(sampling, key, on_token)
            sample = partial(self.engine.generate, self.policy, batch, num_generations, **settings)
            rollout = raise_on_all_ranks(self.trainer, sample)
            self.check_engine(self.engine, batch, rollout, sampling)
            return rollout
        prompts, rows = len(batch.samples), len(batch.samples) * num_generations
        while True:
            at_once = max(1, self.rows_at_once // num_generations)
            generations = min(num_generations, self.rows_at_once)
            try:
                parts = [
                    self.engine.generate(
                        self.policy,
                        batch.select(range(p, min(p + at_once, prompts))),
                        min(generations, num_generations - g),
                        **self.generation(sampling, replace(key, first=key.first + p, first_generation=g), on_token),
                    )
                    for p in range(0, prompts, at_once)
                    for g in range(0, num_generations, generations)
                ]
                return Rollout.join(parts)
            except torch.OutOfMemoryError:
                if isinstance(self.trainer.strategy, FSDP2Strategy) or min(self.rows_at_once, rows) == 1:
                    raise
            self.rows_at_once = min(self.rows_at_once, rows) // 2
            self._free_memory(f"rollouts are of at most {self.rows_at_once} completions at a time")

    def generation(self, sampling: Sampling, key: SamplingKey, on_token: Callable[..., None]) -> dict[str, Any]:
        """What an engine is told beside the prompts."""
        limit = self.max_completion_length
        return {"max_completion_length": limit, "sampling": sampling, "key": key, "on_token": on_token}

    def update_remote_weights(self, engine: RemoteEngine) -> None:
        """Let an engine have the weights, if they have changed. What is sampled with the old ones is waited for."""
        if not self.weights_changed:
            return
        self.prefetcher.join()
        first = self.trainer.is_global_zero
        raise_on_all_ranks(self.trainer, partial(engine.write_weights, self.policy, first))
        raise_on_all_ranks(self.trainer, engine.update_servers if first else lambda: None)
        self.weights_changed = False

    @torch.no_grad()
    def check_engine(self, engine: RemoteEngine, batch: PromptBatch, rollout: Rollout, sampling: Sampling) -> None:
        """Once per stage: compare an engine's log-probabilities of the first prompt with the trainer's own.

        Raises:
            RolloutFailed: they differ by more than the engine's `max_gap` on average.
        """
        if self.engine_checked:
            return
        self.engine_checked = True
        group = slice(0, len(rollout.ids) // len(batch.samples))
        ids, mask = rollout.ids[group], rollout.mask[group]
        own, _ = self.policy(batch.inputs[:1], ids, mask, sampling.temperature, entropy=False)  # (G, T)
        check_logprob_gap(self.trainer, engine, (own - rollout.log_probs[group])[mask.bool()], sampling.top_p)

    def teardown(self, stage: str) -> None:
        self.release_engine()

    def release_engine(self) -> None:
        """A remote engine's files are as large as the model; the next stage writes them again."""
        if isinstance(self.engine, RemoteEngine):
            self.engine.stop()
            self.weights_changed, self.engine_checked = True, False
            if self.trainer.is_global_zero:
                self.engine.remove()

    def _free_memory(self, change: str) -> None:
        self.out_of_memory += 1
        torch.cuda.empty_cache()
        warnings.warn(f"out of memory; from here on {change}", stacklevel=3)  # of any rank

    # ------------------------------------------------------------------------------------------ answers and scores

    def parse(self, texts: Sequence[str], batch: PromptBatch) -> tuple[list[Answer], list[Sample]]:
        """Read N completions of P prompts; also the N samples they belong to."""
        group = len(texts) // len(batch.samples)
        prompts = zip(batch.samples, batch.frames, strict=True)
        pairs = [(sample, frame) for sample, frame in prompts for _ in range(group)]
        answers = [self.task.parse(text, sample, frame) for text, (sample, frame) in zip(texts, pairs, strict=True)]
        return answers, [sample for sample, _ in pairs]

    def score(self, answers: Sequence[Answer], samples: Sequence[Sample]) -> tuple[dict[str, Tensor], Tensor]:
        """Each reward's scores (N,), and their weighted sum (N,); what does not apply counts as 0 in the sum.

        The sum is NaN where a reward gave no finite number.
        """
        scores = {name: reward(answers, samples) for name, reward in self.rewards.items()}
        total = torch.stack([scores[name] * reward.weight for name, reward in self.rewards.items()]).nansum(0)
        return scores, total.masked_fill(total.isinf(), torch.nan)

    def predict_step(self, batch: PromptBatch, batch_idx: int) -> list[Answer]:
        """Greedy answers, one for each prompt."""
        self.refuse_long(batch)
        with phase(self.trainer, "decoding", self.max_completion_length) as advance:
            rollout = self.completions(batch, 1, Sampling(greedy=True), self.key(), advance)
        answers = self.parse(rollout.texts, batch)[0]
        for answer, pieces in zip(answers, self.policy.token_texts(rollout), strict=True):
            answer.tokens = pieces
        return answers

    def validation_step(self, batch: PromptBatch, batch_idx: int) -> list[Answer]:  # type: ignore[override]
        """Greedy answers, one for each prompt. Evaluators read them; here they are scored as in training."""
        warn_of_replaced(batch)
        answers = self.remembered(batch) if self.trainer.testing else self.predict_step(batch, batch_idx)
        data = cast(VisionData, self.trainer.datamodule)  # type: ignore[attr-defined]
        pairs = zip(answers, batch.samples, strict=True)
        counted = [(answer, sample) for answer, sample in pairs if data.is_owned_by_rank(sample)]
        _, total = self.score([answer for answer, _ in counted], [sample for _, sample in counted])
        self.held_out_reward.update(total[total.isfinite()])
        for (answer, _), reward in zip(counted, total.tolist(), strict=True):
            answer.reward = reward
        return answers

    test_step = validation_step  # type: ignore[assignment]

    def remembered(self, batch: PromptBatch) -> list[Answer]:
        """Greedy answers: those that an interrupted test has given, and new ones for the others, which are written."""
        assert self.answer_log is not None
        answers: dict[int, Answer] = {}
        for p, (sample, frame) in enumerate(zip(batch.samples, batch.frames, strict=True)):
            if (entry := self.answer_log.recall(sample)) is not None:
                answers[p] = self.task.parse(entry["completion"], sample, frame)
                answers[p].tokens = tuple((piece, log_prob) for piece, log_prob in entry["tokens"])
        missing = [p for p in range(len(batch.samples)) if p not in answers]
        if self.trainer.strategy.reduce_boolean_decision(bool(missing), all=False):
            missing = missing or [0]  # weights that ranks share are gathered by all of them
            for p, answer in zip(missing, self.predict_step(batch.select(missing), 0), strict=True):
                answers[p] = answer
                self.answer_log.add(batch.samples[p], answer)
        return [answers[p] for p in range(len(batch.samples))]

    def on_test_start(self) -> None:
        checkpoint = self.trainer.ckpt_path
        weights = [self.policy.checkpoint, checkpoint and [str(checkpoint), Path(checkpoint).stat().st_mtime]]
        asked = {"weights": weights, "task": type(self.task).__name__, "template": self.task.template}
        name = Path(checkpoint).stem if checkpoint else "base"
        folder = Path(self.trainer.default_root_dir) / "evaluation" / f"answers-{name}"
        limits = {"length": self.max_completion_length, "coordinates": self.encoder.coordinates}
        self.answer_log = AnswerLog(folder, self.global_rank, asked | limits)

    def on_test_end(self) -> None:
        assert self.answer_log is not None
        self.answer_log.close()

    def on_validation_epoch_start(self) -> None:
        self.engine_checked = False
        self.held_out_reward.reset()
        for reward in self.rewards.values():
            cast(Reward, reward).reset()

    def on_validation_epoch_end(self) -> None:
        """Log the mean reward, and that of each reward over the held-out samples that it applies to."""
        stage = "test" if self.trainer.testing else "val"
        self.log(f"{stage}/reward", self.held_out_reward.compute(), sync_dist=True, reduce_fx="max")  # of equal values
        for name, reward in self.rewards.items():
            mean = cast(Reward, reward).compute()  # of all ranks
            if not mean.isnan():
                self.log(f"{stage}/reward/{name}", mean, sync_dist=True, reduce_fx="max")

    on_test_epoch_start = on_validation_epoch_start
    on_test_epoch_end = on_validation_epoch_end

    # -------------------------------------------------------------------------------------------------- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what trains, and the optimizer's states by name: they mean the same on any number of ranks."""
        for optimizer, state in zip(self.trainer.optimizers, checkpoint["optimizer_states"], strict=True):
            rename(state, dict(enumerate(self._names_of(optimizer))))
        kept = {*self._trainable_names(), "steps_done"}
        checkpoint["state_dict"] = {name: value for name, value in checkpoint["state_dict"].items() if name in kept}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raise ConfigurationError unless all that trains is there; number the optimizer's states as torch does."""
        self.weights_changed = True
        expected = {*self._trainable_names(), "steps_done"}
        found = set(checkpoint["state_dict"])
        if odd := sorted(expected ^ found):
            where = "lacks" if odd[0] in expected else "has"
            raise ConfigurationError(
                f"ckpt_path: made with other model settings: it {where} {odd[0]!r}, and {len(odd) - 1} more"
            )

        if not isinstance(self.trainer.strategy, FSDP2Strategy):
            place = {name: i for i, (name, _) in enumerate(self.named_parameters())}
            for state in checkpoint["optimizer_states"]:
                names = [
                    name for group in state["param_groups"] for name in sorted(group["params"], key=place.__getitem__)
                ]
                rename(state, {name: i for i, name in enumerate(names)})
                for group in state["param_groups"]:
                    group["params"].sort()

    def _names_of(self, optimizer: Optimizer) -> list[str]:
        names = {parameter: name for name, parameter in self.named_parameters()}
        return [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]

    def _trainable_names(self) -> set[str]:
        return {name for name, parameter in self.named_parameters() if parameter.requires_grad}

    # ----------------------------------------------------------------------------------------------------- progress

    @contextmanager
    def phase(self, name: Phase, total: int) -> Iterator[Callable[..., None]]:
        """Show a phase in the bar and log its seconds in this step. Yields a function that is told how much is done."""
        start = time.perf_counter()
        with phase(self.trainer, name, total) as advance:
            yield advance
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
        self.log(f"time/{name}", self.seconds[name])

    def key(self, first: int = 0) -> SamplingKey:
        """Of this step's rollout; `first`: prompts that it has sampled for before."""
        return SamplingKey(self.seed, int(self.steps_done), self.global_rank, self.trainer.world_size, first)


def buckets(sizes: Sequence[int], limit: int) -> list[slice]:
    """Neighbours of at most `limit` together; what is larger is alone."""
    parts: list[slice] = []
    room = 0
    for i, size in enumerate(sizes):
        if size > room:
            parts.append(slice(i, i))
            room = limit
        parts[-1] = slice(parts[-1].start, i + 1)
        room -= size
    return parts


def rename(state: dict[str, Any], names: Mapping[Any, Any]) -> None:
    """Give the parameters in an optimizer's state other names, where they have those that are replaced."""
    if state:
        state["state"] = {names.get(key, key): value for key, value in state["state"].items()}
        state["param_groups"] = [
            {**group, "params": [names.get(key, key) for key in group["params"]]} for group in state["param_groups"]
        ]


def warn_of_replaced(batch: PromptBatch) -> int:
    """How many images of a batch could not be read any more; a warning names each."""
    replaced = [reason for sample in batch.samples for reason in sample.metadata.get("replaced", ())]
    for reason in replaced:
        rank_zero_warn(f"an image that was fine when the run began can't be read: {reason}")
    return len(replaced)
