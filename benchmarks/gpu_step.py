"""Measure time, decoding speed and the peak memory of each phase of a step on a GPU, beside the doctor's estimate.

Called by gpu.py; uses vrft_side.py.
"""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import vrft_side
from lightning.pytorch import Callback, Trainer
from transformers import AutoConfig

from vrft.doctor.fits import count
from vrft.doctor.memory import estimate
from vrft.rollout import transformers

ESTIMATED = {"rollout": "rollout", "reward": "rollout", "reference": "reference"}
"""The estimate for each phase of a step; other phases belong to `update`."""


class Measured(NamedTuple):
    """The measurements of a step."""

    line: dict[str, Any]  # the line of step.py
    rows: int  # number of rows that decode at once
    tokens_per_second: float  # decoded tokens
    weights: int  # bytes of weights read for a decoded token
    peaks: dict[str, int]  # bytes, by phase
    estimates: dict[str, float]  # bytes, by phase


def measure(arguments: Namespace) -> Measured:
    """Measure steps of a checkpoint without weights, which become random."""
    watch = Watch(arguments.warmup)
    with patch("vrft.policy.pretrained.check_loaded"), patch.object(transformers, "decode", watch.decode):
        line = vrft_side.measure(arguments, watch)
    config = AutoConfig.from_pretrained(arguments.checkpoint)
    text = config.get_text_config()
    weights = torch.bfloat16.itemsize * (count(config).quantizable + text.vocab_size * text.hidden_size)
    tokens, seconds = (sum(values) for values in zip(*watch.decoded, strict=True))
    rows = arguments.prompts * arguments.num_generations
    return Measured(line, rows, tokens / seconds, weights, watch.peaks, watch.estimates)


class Watch(Callback):
    """Measures decoding after the first steps, and the peak memory of each phase.

    Attributes:
        decoded: tokens and seconds of each rollout, from its first token to its last.
        peaks: bytes by phase; the first steps count as one phase.
        estimates: the doctor's bytes by phase.
    """

    def __init__(self, warmup: int) -> None:
        self.warmup = warmup
        self.decoded: list[tuple[int, float]] = []
        self.peaks: dict[str, int] = {}
        self.estimates: dict[str, float] = {}
        self.own_decode = transformers.decode
        self.is_first = True

    def note(self, name: str) -> None:
        """Record the peak since the last call for a phase."""
        self.peaks[name] = max(self.peaks.get(name, 0), torch.cuda.max_memory_allocated())
        torch.cuda.reset_peak_memory_stats()

    def decode(self, steps: Any, limit: int, *more: Any) -> None:
        """Decode like the engine, and measure the decoding during training."""
        rows = steps.grid.rows.numel()
        torch.cuda.synchronize()
        start = time.perf_counter()
        self.own_decode(steps, limit, *more)
        torch.cuda.synchronize()
        if self.trainer.training and not self.is_first:
            self.decoded.append((rows * limit, time.perf_counter() - start))

    def on_fit_start(self, trainer: Trainer, module: Any) -> None:
        self.note("load")
        self.trainer = trainer
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        samples = [data.train_set()[i] for i in range(data.batch_size)]
        self.estimates = estimate(module, data, module.policy.encoder(module.task)(samples)).phases
        own = module.step.phase

        @contextmanager
        def watched(name: str, total: int) -> Iterator[Callable[..., None]]:
            with own(name, total) as advance:
                yield advance
            self.note("first step" if self.is_first else ESTIMATED.get(name, "update"))

        module.step.phase = watched

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.is_first = trainer.global_step < self.warmup

    def on_validation_start(self, *_: Any) -> None:
        torch.cuda.reset_peak_memory_stats()

    def on_validation_end(self, *_: Any) -> None:
        self.note("evaluation")
