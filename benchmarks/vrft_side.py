"""Measure the step of `vrft.RFT` under a Lightning trainer, as in `fit`."""

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
from work import Clock, count_images, image_size, image_tokens, pictures, result

from vrft import RFT
from vrft.data.datamodule import VisionData
from vrft.policy import LoRA, Policy
from vrft.rewards import Reward
from vrft.tasks import Task
from vrft.training.step_state import Phase
from vrft.types import Answer, Frame, Question, Sample


class AnyText(Task):
    """Asks the question unchanged and accepts every completion."""

    def answer_text(self, sample: Question, frame: Frame) -> str:
        return ""

    def reasoning_text(self, sample: Question) -> str:
        return ""

    def read(self, content: str, sample: Question, frame: Frame) -> str:
        return content


class Arbitrary(Reward):
    """A reward that differs between completions."""

    def score(self, answer: Answer, sample: Question) -> float:
        return sum(map(ord, answer.text)) % 7 / 7


class Pictures(VisionData):
    """Data module of the generated pictures, in order."""

    shuffle = False

    def __init__(self, arguments: Namespace) -> None:
        super().__init__(arguments.prompts, arguments.prompts, num_workers=0, seed=arguments.seed)
        self.arguments = arguments

    def train_set(self) -> Dataset[Sample]:
        assert self.trainer is not None
        tokenizer: Any = self.trainer.lightning_module.policy.tokenizer
        samples = enumerate(pictures(self.arguments, tokenizer))
        return [Sample(i, (image,), i, question, "") for i, (image, question) in samples]  # type: ignore[return-value]

    val_set = train_set


def time_phases(module: RFT, clock: Clock) -> None:
    """Add the time of each phase of a training step to a clock."""
    phase = module.step.phase

    @contextmanager
    def timed(name: Phase, total: int) -> Iterator[Callable[..., None]]:
        with clock.part(name), phase(name, total) as advance:
            yield advance

    module.step.phase = timed  # type: ignore[method-assign]


class Steps(Callback):
    """Measures steps, each from the end of the previous step, so that loading pictures is included."""

    def __init__(self, arguments: Namespace, clock: Clock, counts: dict[str, int]) -> None:
        self.arguments, self.clock, self.counts = arguments, clock, counts

    def on_fit_start(self, trainer: Trainer, module: Any) -> None:
        """Fix the number of threads, force completions of full length, and count images."""
        if self.arguments.device == "cpu":
            torch.set_num_threads(self.arguments.threads)
        policy = module.policy
        policy.shares_prefixes &= self.arguments.side != "repeated"
        policy.banned_ids = torch.cat([policy.banned_ids, policy.stop_ids])
        towers = [model.get_encoder(modality="image") for model in (policy.base, policy.reference) if model is not None]
        count_images(self.counts, policy.processor.image_processor, towers)

    def on_train_start(self, *_: Any) -> None:
        self.start = self.clock.now()
        self.clock.start_step()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.clock.add("step", self.start)
        self.start = self.clock.now()
        if trainer.global_step == self.arguments.warmup:
            self.counts.clear()  # the check of prefix sharing is not part of a step
        if trainer.global_step < trainer.max_steps:
            self.clock.start_step()


def measure(arguments: Namespace, watch: Callback | None = None) -> dict[str, Any]:
    """Train for a few steps and return the line to print. If `side` is `repeated`, repeat prompts.

    `watch`: an additional callback; the run then ends with the evaluation of a batch.
    """
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    clock = Clock(arguments.device)
    counts: dict[str, int] = {}
    module = build_module(arguments)
    time_phases(module, clock)
    trainer = Trainer(
        max_steps=arguments.steps + arguments.warmup,
        accelerator="gpu" if arguments.device == "cuda" else "cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Steps(arguments, clock, counts), *([watch] if watch else [])],
        num_sanity_val_steps=0,
        limit_val_batches=1 if watch else 0,
    )
    if arguments.profile:
        with torch.profiler.profile() as profile:
            trainer.fit(module, datamodule=Pictures(arguments))
        by = "self_cuda_time_total" if arguments.device == "cuda" else "self_cpu_time_total"
        print(profile.key_averages().table(sort_by=by, row_limit=20, max_name_column_width=44), file=sys.stderr)
    else:
        trainer.fit(module, datamodule=Pictures(arguments))
    about = {
        "lib": arguments.side or "vrft",
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
    }
    return result(arguments, clock, counts, about)


def build_module(arguments: Namespace) -> RFT:
    """Build the module from the arguments that both sides share."""
    policy = Policy(
        arguments.checkpoint,
        lora=LoRA(r=arguments.lora_r, alpha=2 * arguments.lora_r) if arguments.lora_r else None,
        freeze_vision=arguments.freeze_vision,
        dtype="float32" if arguments.device == "cpu" else "bfloat16",
        max_pixels=28 * 28 * 16384,
        gradient_checkpointing=arguments.gradient_checkpointing,
    )
    per_prompt = arguments.prompt_tokens + 64 + arguments.num_generations * arguments.completion_tokens
    prompts = max(1, arguments.micro_batch // arguments.num_generations)
    return RFT(
        task=AnyText("{query}"),
        policy=policy,
        rewards={"arbitrary": Arbitrary()},
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-5 if arguments.lora_r else 1e-6, fused=True),
        num_generations=arguments.num_generations,
        beta=arguments.beta,
        max_completion_length=arguments.completion_tokens,
        max_tokens_per_micro_batch=prompts * (per_prompt + image_tokens(*image_size(arguments))),
    )
