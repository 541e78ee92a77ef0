"""Check settings, devices, prompts and images early in a run."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from vrft.data import VisionData
from vrft.errors import ConfigurationError
from vrft.policy import Policy
from vrft.policy.sharing_check import sharing_gap, unfuse
from vrft.types import PromptBatch
from vrft.utils import notices


def check_settings(**settings: tuple[float, float, float]) -> None:
    """Raise ConfigurationError for the first setting out of range. Each is given as (value, lowest, highest)."""
    for name, (value, lowest, highest) in settings.items():
        if not lowest <= value <= highest:
            upper = "" if highest == float("inf") else f" and at most {highest}"
            raise ConfigurationError(f"model.{name}: expected at least {lowest}{upper}, got {value}")


def check_minibatches(data: VisionData | None, num_minibatches: int) -> None:
    """Raise ConfigurationError if the prompts of a step can't be divided into `num_minibatches` minibatches."""
    if data is not None and data.batch_size < num_minibatches:
        raise ConfigurationError(
            f"model.num_minibatches: {num_minibatches} parts of {data.batch_size} prompts (data.batch_size) "
            "can't be made"
        )


def check_precision(trainer: Trainer) -> None:
    """Raise ConfigurationError unless `trainer.precision` is float32.

    Lightning would wrap whole steps in an autocast context, which caches casts of weights. Casts from a rollout have no
    gradient in the update, and are stale after an optimizer step.
    """
    precision = trainer.precision
    if precision != "32-true":
        raise ConfigurationError(
            f"trainer.precision: expected 32-true, got {precision}; "
            "model.policy.dtype is the setting for bfloat16 and float16"
        )


def check_determinism(device: torch.device) -> None:
    """Raise ConfigurationError for `trainer.deterministic=true` on a GPU, where sampling would raise an error.

    Torch has no deterministic cumulative sum of floats for CUDA.
    """
    strict = torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
    if device.type == "cuda" and strict:
        raise ConfigurationError(
            "trainer.deterministic: expected warn or false on a GPU, got true; torch can't sample tokens there with "
            "deterministic algorithms alone"
        )


BFLOAT16_CAPABILITY = (8, 0)
"""Minimum compute capability of GPUs with bfloat16. Older GPUs emulate it, many times slower."""


def check_device(device: torch.device, dtype: torch.dtype) -> None:
    """Raise ConfigurationError if a device can't compute in a dtype, or has never been tested."""
    if device.type == "mps":
        raise ConfigurationError("trainer.accelerator: expected cpu or gpu; no result of vrft has been checked on mps")
    if device.type != "cuda" or dtype != torch.bfloat16:
        return
    capability = torch.cuda.get_device_capability(device)
    if capability < BFLOAT16_CAPABILITY:
        raise ConfigurationError(
            f"model.policy.dtype: {torch.cuda.get_device_name(device)} has compute capability "
            f"{capability[0]}.{capability[1]} and can't compute in bfloat16, which needs 8.0; "
            "expected float16 or float32"
        )


CONTEXT = "(max_position_embeddings; with the rope type longrope, original_max_position_embeddings)"
"""The fields that limit the number of tokens that a model supports."""


def check_prompt_lengths(batch: PromptBatch, max_completion_length: int, max_positions: int) -> None:
    """Raise ConfigurationError if a prompt leaves no room for a completion in the model's context."""
    for sample, length in zip(batch.samples, prompt_lengths(batch), strict=True):
        if length + max_completion_length > max_positions:
            raise ConfigurationError(
                f"sample {sample.index} (image {sample.image_id}, {sample.query!r}): {length} tokens of prompt and "
                f"{max_completion_length} of completion (model.max_completion_length) are more than the model's "
                f"{max_positions} {CONTEXT}; lower model.max_completion_length, or model.policy.max_pixels or "
                "max_tiles for smaller images"
            )


def check_target_lengths(batch: PromptBatch, targets: Sequence[Tensor], max_positions: int) -> None:
    """Raise ConfigurationError if a prompt and its target text (T,) do not fit in the model's context."""
    for sample, length, target in zip(batch.samples, prompt_lengths(batch), targets, strict=True):
        if length + len(target) > max_positions:
            raise ConfigurationError(
                f"sample {sample.index} (image {sample.image_id}, {sample.query!r}): {length} tokens of prompt and "
                f"{len(target)} of its target text are more than the model's {max_positions} {CONTEXT}; expected a "
                "shorter text, or a lower model.policy.max_pixels or max_tiles for smaller images"
            )


def prompt_lengths(batch: PromptBatch) -> list[int]:
    """Return the number of tokens of each prompt."""
    return [prompt["input_ids"].shape[1] for prompt in batch.inputs]


def warn_of_replaced_images(batch: PromptBatch) -> int:
    """Warn of images that can no longer be read and were replaced. Return their number."""
    replaced = [reason for sample in batch.samples for reason in sample.metadata.get("replaced", ())]
    for reason in replaced:
        notices.warn(f"an image that was fine when the run began can't be read: {reason}")
    return len(replaced)


CERTAIN = 10.0
"""Multiple of the allowed difference that rounding in bfloat16 never reaches, even over a few tokens."""


class SharedPromptCheck:
    """Compares log-probabilities of completions with those of the original model's forward, once per process."""

    def __init__(self) -> None:
        self.done = False

    def __call__(self, trainer: Trainer, policy: Policy, batch: PromptBatch, ids: Tensor, mask: Tensor) -> None:
        """Make the policy repeat prompts if log-probabilities with a shared prompt differ on any rank.

        Args:
            trainer: the trainer whose ranks decide together.
            policy: the policy.
            batch: P prompts with their pixels.
            ids: completions, (N, T).
            mask: 1 at real tokens, (N, T).

        Raises:
            ConfigurationError: log-probabilities with repeated prompts differ too, by far more than rounding explains.
        """
        if self.done:
            return
        self.done = True
        group = min(2, len(ids) // len(batch.inputs))
        while True:
            gap, allowed = sharing_gap(policy, batch.inputs[0], ids[:group], mask[:group])
            worst = torch.tensor([gap / allowed, gap, allowed], device=trainer.strategy.root_device)
            ratio, gap, allowed = trainer.strategy.reduce(worst, reduce_op="max").tolist()
            if ratio <= 1 or (not policy.shares_prefixes and ratio < CERTAIN):
                return
            differ = (
                f"{type(policy.base).__name__}: log-probabilities with a {{}} prompt differ from the model's own by "
                f"{gap:.2g} on average (allowed: {allowed:.2g})"
            )
            if policy.fused:
                unfuse(policy)
                kind = "shared" if policy.shares_prefixes else "repeated"
                rank_zero_warn(f"{differ.format(kind)}; layers compute as in transformers instead, which is slower")
                continue
            if not policy.shares_prefixes:
                raise ConfigurationError(f"model.policy: {differ.format('repeated')}, so it can't be trained")
            policy.shares_prefixes = False
            rank_zero_warn(f"{differ.format('shared')}; prompts are repeated instead, which is slower")
