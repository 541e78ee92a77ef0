"""The step of `vrft.RFT` under a Lightning trainer, as `fit` runs it."""

from __future__ import annotations

import logging
import sys
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from lightning.pytorch import Callback, Trainer
from torch.utils.data import Dataset
from work import Clock, counted, pictures, result

from vrft import RFT
from vrft.data.datamodule import VisionData
from vrft.policy import LoRA, Policy
from vrft.rewards import Reward
from vrft.tasks import Task
from vrft.training.step_state import Phase
from vrft.types import Answer, Frame, Question, Sample


class AnyText(Task):
    """Asks the question as it is; every completion is an answer."""

    def answer_text(self, sample: Question, frame: Frame) -> str:
        return ""

    def reasoning_text(self, sample: Question) -> str:
        return ""

    def read(self, content: str, sample: Question, frame: Frame) -> str:
        return content


class Arbitrary(Reward):
    """Something that differs between completions."""

    def score(self, answer: Answer, sample: Question) -> float:
        return sum(map(ord, answer.text)) % 7 / 7


class Pictures(VisionData):
    """The pictures of the run, in order."""

    shuffle = False

    def __init__(self, arguments: Namespace) -> None:
        super().__init__(arguments.prompts, arguments.prompts, num_workers=0, seed=arguments.seed)
        self.arguments = arguments

    def train_set(self) -> Dataset[Sample]:
        assert self.trainer is not None
        tokenizer: Any = self.trainer.lightning_module.policy.tokenizer
        samples = enumerate(pictures(self.arguments, tokenizer))
        return [Sample(i, image, i, question, "") for i, (image, question) in samples]  # type: ignore[return-value]

    val_set = train_set


def time_phases(module: RFT, clock: Clock) -> None:
    """Count the time of each phase of a training step."""
    phase = module.step.phase

    @contextmanager
    def timed(name: Phase, total: int) -> Iterator[Callable[..., None]]:
        with clock.part(name), phase(name, total) as advance:
            yield advance

    module.step.phase = timed  # type: ignore[method-assign]


class Steps(Callback):
    """A step lasts from the end of the one before to its own, so that loading its pictures is part of it."""

    def __init__(self, clock: Clock, counts: dict[str, int], warmup: int) -> None:
        self.clock, self.counts, self.warmup = clock, counts, warmup

    def on_train_start(self, *_: Any) -> None:
        self.start = self.clock.now()
        self.clock.start_step()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.clock.add("step", self.start)
        for suffix in ("", "@cpu"):
            self.clock.steps[-1][f"update{suffix}"] -= self.clock.steps[-1][f"optimizer{suffix}"]
        self.start = self.clock.now()
        if trainer.global_step == self.warmup:
            self.counts.clear()  # the check at the start is no step's work
        if trainer.global_step < trainer.max_steps:
            self.clock.start_step()


def measure(arguments: Namespace) -> dict[str, Any]:
    """Train for a few steps; the line to print."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    clock = Clock(arguments.device)
    counts: dict[str, int] = {}
    tokens = 28 * 28
    policy = Policy(
        arguments.checkpoint,
        lora=LoRA(r=arguments.lora_r, alpha=2 * arguments.lora_r) if arguments.lora_r else None,
        freeze_vision=arguments.freeze_vision,
        dtype="float32" if arguments.device == "cpu" else "bfloat16",
        max_pixels=tokens * 16384,
        gradient_checkpointing=arguments.gradient_checkpointing,
    )
    per_prompt = arguments.prompt_tokens + 64 + arguments.num_generations * arguments.completion_tokens
    width, height = (int(x) for x in arguments.image_size.split("x"))
    module = RFT(
        task=AnyText("{query}"),
        policy=policy,
        rewards={"arbitrary": Arbitrary()},
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-5 if arguments.lora_r else 1e-6, fused=True),
        num_generations=arguments.num_generations,
        beta=arguments.beta,
        max_completion_length=arguments.completion_tokens,
        max_tokens_per_micro_batch=max(1, arguments.micro_batch // arguments.num_generations)
        * (per_prompt + width * height // tokens),
    )
    time_phases(module, clock)
    module.configure_model()
    if arguments.device == "cpu":
        torch.set_num_threads(arguments.threads)
    policy.banned_ids = torch.cat([policy.banned_ids, policy.stop_ids])  # so that every completion is of full length
    tower = policy.base.get_encoder(modality="image")
    processor = policy.processor.image_processor
    tower.forward = counted(tower.forward, images_in, counts, "tower")
    kind: Any = type(processor)
    kind._preprocess = counted(kind._preprocess, lambda _, images, *a, **k: len(images), counts, "preprocessed")
    if policy.reference is not None:
        other = policy.reference.get_encoder(modality="image")
        other.forward = counted(other.forward, images_in, counts, "tower")
    trainer = Trainer(
        max_steps=arguments.steps + arguments.warmup,
        accelerator="gpu" if arguments.device == "cuda" else "cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Steps(clock, counts, arguments.warmup)],
        limit_val_batches=0,
    )
    if arguments.profile:
        with torch.profiler.profile() as profile:
            trainer.fit(module, datamodule=Pictures(arguments))
        by = "self_cuda_time_total" if arguments.device == "cuda" else "self_cpu_time_total"
        print(profile.key_averages().table(sort_by=by, row_limit=20, max_name_column_width=44), file=sys.stderr)
    else:
        trainer.fit(module, datamodule=Pictures(arguments))
    about = {"lib": "vrft", "transformers": transformers.__version__, "threads": torch.get_num_threads()}
    return result(arguments, clock, counts, about)


def images_in(*args: Any, **kwargs: Any) -> int:
    """Images in a call of the vision tower."""
    grid = kwargs["grid_thw"] if "grid_thw" in kwargs else args[1]
    return len(grid)
