"""The LightningModule with the hooks that reinforcement and supervised fine-tuning share."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, cast

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.optim import Optimizer

from vrft.data.datamodule import data_of, train_loader_of
from vrft.data.difficulty import Difficulty
from vrft.errors import ConfigurationError
from vrft.policy import Policy
from vrft.policy.processor import Encoder
from vrft.rewards import Reward
from vrft.rollout import RolloutEngine, Sampling, SamplingKey
from vrft.run_dir import RunDir
from vrft.tasks import Task
from vrft.training import checkpoint_state
from vrft.training.answer_log import AnswerLog
from vrft.training.cached_answers import cached_answers
from vrft.training.checks import (
    SharedPromptCheck,
    check_determinism,
    check_device,
    check_precision,
    check_prompt_lengths,
    warn_of_replaced_images,
)
from vrft.training.cross_entropy import CrossEntropy
from vrft.training.lightning_internals import logged_step
from vrft.training.loss_scale import LossScale
from vrft.training.optimization import Interval, Optimization, OptimizerStep, use_fused_kernels
from vrft.training.progress_bar import phase
from vrft.training.rollouts import Generation, rollouts_for
from vrft.training.scoring import HeldOutMeans, models_of, parse_completions, score_answers, scored_samples
from vrft.training.self_judge import SelfJudge, check_before_reading, self_judges
from vrft.training.step_state import StepState
from vrft.training.stochastic_rounding import check_rounding
from vrft.training.strategies import parallelism_of
from vrft.types import Answer, PromptBatch, Sample
from vrft.utils.distributed import raise_on_all_ranks
from vrft.utils.heap import keep_freed_memory

CPU_THREADING_MIN_PARAMETERS = 10_000_000
"""Minimum model size for several CPU threads: a second thread speeds up no smaller model, and may slow it tenfold."""


class VisionModule(LightningModule):
    """Base class of `RFT` and `SFT`: loads the policy, answers held-out prompts, saves and resumes.

    Optimization is manual, because one rollout may feed several optimizer steps. The parts `rollouts`, `optimization`,
    `cross_entropy` and `step` do the work. They are plain objects, so that checkpoints contain only the policy.
    """

    keep_reference = False
    """Whether the loss needs the initial policy as a fixed reference."""
    reference_follows = False
    """Whether the reference is a moving average of the trained weights."""
    group_size = 1
    """Completions per prompt in a training step, G."""
    num_samples = 1
    """Completions per prompt that are sampled; a step trains on `group_size` of them."""
    batches_per_step = 1
    """Number of loader batches that are joined into one training step."""
    difficulty: Difficulty | None = None
    """Sampling of prompts by success rate; None: each prompt once per pass."""
    prefetches = False
    """Whether a training step needs the next batch."""
    sampling = Sampling()
    """The sampling distribution of training."""
    answering: Callable[[VisionModule, PromptBatch], list[Answer]] | None = None
    """Replaces greedy decoding in `predict_step`, if set."""
    settings: str | None = None
    """Digest of all settings that answers depend on; None: unknown, so that earlier answers are not reused."""
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
        max_tokens_per_micro_batch: int,
        max_grad_norm: float,
        lr_scheduler_interval: Interval = "step",
    ) -> None:
        super().__init__()
        if not rewards:
            raise ConfigurationError("model.rewards: expected at least one reward, e.g. {format: {class_path: Format}}")
        self.automatic_optimization = False
        self.strict_loading = False  # checkpoints lack frozen weights; `on_load_checkpoint` checks the others
        self.task, self.policy = task, policy
        self.rewards, self.reward_models = rewards, nn.ModuleList()
        self.held_out_means = HeldOutMeans()
        self.optimizer_callable, self.lr_scheduler_callable = optimizer, lr_scheduler
        self.max_completion_length = max_completion_length
        self.seed = torch.initial_seed() % 2**32
        self.register_buffer("steps_done", torch.zeros((), dtype=torch.long))
        self.step = StepState(self)
        self.rollouts = rollouts_for(engine, self, policy, task, self.step)
        self.optimization = Optimization(
            self,
            self.step,
            max_grad_norm,
            max_tokens_per_micro_batch,
            lr_scheduler_interval,
            policy.decoding.free,
            LossScale(self, policy.dtype),
        )
        self.cross_entropy = CrossEntropy(self, task, policy, self.optimization, self.step)
        self.check_sharing = SharedPromptCheck()
        self.answer_log: AnswerLog | None = None

    def configure_model(self) -> None:
        check_precision(self.trainer)
        check_determinism(self.trainer.strategy.root_device)
        check_device(self.trainer.strategy.root_device, self.policy.dtype)
        check_rounding(self.policy, self.trainer, self.optimizer_callable, self.reference_follows)
        if self.trainer.strategy.root_device.type == "cpu":
            keep_freed_memory()
        if self.policy.processor is None:
            raise_on_all_ranks(self.trainer, self.check_rewards)
            turns = data_of(self.trainer).images_per_turn()
            raise_on_all_ranks(self.trainer, partial(self.policy.reader.check_turns, turns))
            parallelism_of(self.trainer).load(self.policy, self.keep_reference)
            for reward in self_judges(self.rewards).values():
                reward.ask = SelfJudge(reward, self.policy, self.task, self.optimization)
            self.reward_models.extend(models_of(self.rewards))
            if sum(parameter.numel() for parameter in self.parameters()) < CPU_THREADING_MIN_PARAMETERS:
                torch.set_num_threads(1)
            self.rollouts.connect()

    def check_rewards(self) -> None:
        """Load what rewards need, before the policy is read. Raise ConfigurationError for incompatible settings."""
        check_before_reading(self.rewards, self.policy, self.engine, self.reference_follows, self.trainer)
        for reward in self.rewards.values():
            reward.load()

    def teardown(self, stage: str) -> None:
        self.rollouts.release()

    @property
    def engine(self) -> RolloutEngine:
        """The rollout engine."""
        return self.rollouts.engine

    @property
    def encoder(self) -> Encoder:
        """The loaders' collate function, which converts samples to prompts."""
        return self.policy.encoder(self.task)

    @property
    def logged_step(self) -> int:
        """The step for loggers: the number of rollouts before the current one."""
        return logged_step(self.trainer)

    # ----------------------------------------------------------------------------------------------------- training

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer_callable(parameter for parameter in self.parameters() if parameter.requires_grad)
        use_fused_kernels(optimizer)
        if self.lr_scheduler_callable is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self.lr_scheduler_callable(optimizer)}

    def on_train_start(self) -> None:
        if self.trainer.ckpt_path is not None:
            optimizer = cast(Optimizer, self.optimizers(use_pl_optimizer=False))
            checkpoint_state.own_states(optimizer)
            schedulers = self.trainer.lr_scheduler_configs
            checkpoint_state.use_configured_settings(optimizer, schedulers, self.lr_scheduler_callable)

    def on_train_batch_start(self, batch: PromptBatch, batch_idx: int) -> None:
        check_prompt_lengths(batch, self.max_completion_length, self.policy.max_positions)
        self.log("train/replaced_images", float(warn_of_replaced_images(batch)))
        self.log("train/dead_workers", float(train_loader_of(self.trainer).dead_workers))

    def compare_prompts(self, batch: PromptBatch) -> PromptBatch:
        """Find shared prefixes of the prompts, before the batch is moved to a GPU."""
        return self.policy.compare_prompts(batch)

    def begin_step(self) -> None:
        """Seed all random numbers of the step by (seed, step, rank), so that a resumed run repeats them."""
        seed = int(np.random.SeedSequence((self.seed, int(self.steps_done), self.global_rank)).generate_state(1)[0])
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        self.step.begin()
        self.optimization.begin_step()
        self.rollouts.begin_step()

    def log_step(self, done: OptimizerStep) -> None:
        """Log an optimizer step, and mark the engine's copies of the weights as outdated."""
        if not done.skipped:
            self.rollouts.weights_changed()
        self.log("train/learning_rate", done.learning_rate)
        self.log("train/grad_norm", done.grad_norm)
        self.log("train/skipped_steps", float(self.step.skipped_steps))
        if self.optimization.loss_scale.enabled:
            self.log("train/loss_scale", self.optimization.loss_scale.scale)
            self.log("train/overflowed_steps", float(self.step.overflowed_steps))
        self.log("train/out_of_memory", float(self.step.out_of_memory), sync_dist=True, reduce_fx="sum")

    def end_step(self) -> None:
        """Count the training step. After the last step of an epoch, advance a schedule with epochs as its unit."""
        self.steps_done += 1
        loader = train_loader_of(self.trainer)
        if loader.batches == len(loader):
            self.optimization.advance_schedule("epoch")

    def sampling_key(self, first: int = 0) -> SamplingKey:
        """Return the key of this step's random numbers. `first`: number of this rank's prompts sampled before."""
        return SamplingKey(self.seed, int(self.steps_done), self.global_rank, self.trainer.world_size, first)

    # ------------------------------------------------------------------------------------------------- held-out data

    def predict_step(self, batch: PromptBatch, batch_idx: int) -> list[Answer]:
        """Return a greedy answer for each prompt, or what `answering` returns."""
        if self.answering is not None:
            return self.answering(self, batch)
        check_prompt_lengths(batch, self.max_completion_length, self.policy.max_positions)
        generation = Generation(1, self.max_completion_length, Sampling(greedy=True), self.sampling_key())
        with phase(self.trainer, "decoding", self.max_completion_length) as advance:
            rollout = self.rollouts.generate(self.policy.prepare(batch), generation, advance)
        answers, _ = parse_completions(self.task, rollout, batch)
        for answer, tokens in zip(answers, self.policy.token_texts(rollout), strict=True):
            answer.tokens = tokens
        return answers

    def validation_step(self, batch: PromptBatch, batch_idx: int) -> list[Answer]:  # type: ignore[override]
        """Return greedy answers, scored by the rewards of training. Evaluators compute the benchmarks' scores."""
        warn_of_replaced_images(batch)
        answers = self.test_answers(batch) if self.trainer.testing else self.predict_step(batch, batch_idx)
        data = data_of(self.trainer)
        pairs = zip(answers, scored_samples(self.task, batch), strict=True)
        owned = [(answer, sample) for answer, sample in pairs if data.is_owned_by_rank(sample)]
        scores, total = self.score([answer for answer, _ in owned], [sample for _, sample in owned])
        self.held_out_means.add({"reward": total} | {f"reward/{name}": values for name, values in scores.items()})
        for (answer, _), reward in zip(owned, total.tolist(), strict=True):
            answer.reward = reward
        return answers

    test_step = validation_step  # type: ignore[assignment]

    def score(self, answers: Sequence[Answer], samples: Sequence[Sample]) -> tuple[dict[str, Tensor], Tensor]:
        """Return each reward's scores, (N,), and their weighted sum, (N,), see `score_answers`.

        Raises:
            RewardFailed: a remote reward or the policy as a judge gave no score, on this rank or on another.
        """
        score = partial(score_answers, self.rewards, answers, samples, self.device)
        if not self_judges(self.rewards) and not any(reward.remote for reward in self.rewards.values()):
            return score()
        return raise_on_all_ranks(self.trainer, score)

    def test_answers(self, batch: PromptBatch) -> list[Answer]:
        """Return greedy answers, and reuse those that an interrupted test has written."""
        assert self.answer_log is not None
        return cached_answers(self.answer_log, self.task, batch, self.predict_step, self.trainer.strategy)

    def on_test_start(self) -> None:
        checkpoint = self.trainer.ckpt_path
        weights = [self.policy.checkpoint, checkpoint and [str(checkpoint), Path(checkpoint).stat().st_mtime]]
        asked = None if self.settings is None else {"weights": weights, "settings": self.settings}
        folder = RunDir.of(self.trainer).answer_log(Path(checkpoint).stem if checkpoint else "base")
        self.answer_log = AnswerLog(folder, self.global_rank, asked)

    def on_test_end(self) -> None:
        assert self.answer_log is not None
        self.answer_log.close()

    def on_validation_epoch_start(self) -> None:
        self.rollouts.begin_stage()
        self.held_out_means.reset()

    def on_validation_epoch_end(self) -> None:
        """Log the mean reward, and the mean of each reward over the held-out samples that it applies to."""
        self.rollouts.end_stage()
        stage = "test" if self.trainer.testing else "val"
        # all ranks have the same values, which "max" keeps exactly
        for name, mean in self.held_out_means.compute(self.trainer.world_size).items():
            if name == "reward" or not math.isnan(mean):
                self.log(f"{stage}/{name}", mean, sync_dist=True, reduce_fx="max")

    on_test_epoch_start = on_validation_epoch_start
    on_test_epoch_end = on_validation_epoch_end

    # -------------------------------------------------------------------------------------------------- checkpoints

    @classmethod
    def load_from_checkpoint(cls, *_: Any, **__: Any) -> NoReturn:
        """Raise ConfigurationError, because loading the frozen weights, which a checkpoint lacks, needs a Trainer."""
        raise ConfigurationError(
            "load_from_checkpoint: a checkpoint holds trained weights alone, without settings; pass it as ckpt_path "
            "to fit, validate, test or predict of a Trainer with a module of the same settings, or export it "
            "(python -m vrft export RUN --output FOLDER) and load the folder with vrft.Predictor"
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep only the trained weights, and store optimizer states by parameter name."""
        checkpoint_state.name_optimizer_states(self, self.trainer.optimizers, checkpoint["optimizer_states"])
        if self.optimization.loss_scale.enabled:
            checkpoint["loss_scale"] = self.optimization.loss_scale.state_dict()
        kept = self.state_names()
        checkpoint["state_dict"] = {name: value for name, value in checkpoint["state_dict"].items() if name in kept}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raise ConfigurationError unless the checkpoint has exactly the trained weights."""
        checkpoint_state.check_state_names({*checkpoint["state_dict"]}, self.state_names())
        if parallelism_of(self.trainer).numbers_optimizer_states:
            checkpoint_state.number_optimizer_states(self, checkpoint["optimizer_states"])
        self.optimization.loss_scale.load_state_dict(checkpoint.get("loss_scale", {}))
        self.rollouts.weights_changed()

    def state_names(self) -> set[str]:
        """Return the names of the weights in a checkpoint."""
        return {*checkpoint_state.trainable_names(self), "steps_done"}
