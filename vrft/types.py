"""The typed data walk: sample, prompt, rollout, answer.

Shapes: P prompts on this rank, G generations per prompt, N = P * G rows (row p * G + g belongs to prompt p),
L prompt tokens, T completion tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from PIL import Image
from torch import Tensor


class Detection(NamedTuple):
    """One box, x0 y0 x1 y1 in pixels of the original image."""

    box: tuple[float, float, float, float]
    label: str
    score: float = 1.0


Target = tuple[Detection, ...] | str
"""What is right: boxes for detection, a class name for classification."""


class Frame(NamedTuple):
    """Width and height of the coordinate system in which a model names positions: (1000, 1000) or resized pixels."""

    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Sample:
    """One image, one question about it and what is right.

    `index` is the position in its data set and identifies the sample on every rank; `image_id` is the file's own.
    """

    index: int
    image: Image.Image
    image_id: int
    query: str
    target: Target
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PromptBatch:
    """P samples and what the model reads of them: for each the processor's output, a batch of one, without padding."""

    samples: list[Sample]
    frames: list[Frame]
    inputs: list[dict[str, Any]]  # P times input_ids, attention_mask (1, L) and the images

    def select(self, prompts: Sequence[int]) -> PromptBatch:
        """These prompts of it."""
        return PromptBatch(
            [self.samples[p] for p in prompts], [self.frames[p] for p in prompts], [self.inputs[p] for p in prompts]
        )


@dataclass(frozen=True, slots=True)
class Rollout:
    """G completions for each of P prompts. `mask` is 1 up to and including the end token."""

    ids: Tensor  # (N, T)
    mask: Tensor  # (N, T)
    log_probs: Tensor  # (N, T), of the tokens under the policy at its temperature: what the trainer computes
    sampling_log_probs: Tensor  # (N, T), of the tokens as they were drawn: less what top-p, top-k or min-p left out
    truncated: Tensor  # (N,) bool: no end token within the limit
    texts: list[str]


@dataclass(slots=True)  # not frozen: Lightning copies what `predict` returns field by field
class Answer:
    """One completion, read. `value` is None where the answer can't be read; `well_formed` is about the tags alone."""

    text: str
    reasoning: str
    value: Target | None
    well_formed: bool

    @property
    def valid(self) -> bool:
        """In the format that was asked for, with an answer that can be read."""
        return self.well_formed and self.value is not None


@dataclass(frozen=True, slots=True)
class ScoredRollout:
    """What a training step leaves to look at: completions with their answers, rewards and advantages."""

    samples: list[Sample]  # P
    answers: list[Answer]  # N
    rewards: dict[str, Tensor]  # name -> (N,), NaN where a reward does not apply
    total: Tensor  # (P, G)
    advantages: Tensor  # (P, G)
