"""Group consecutive prompts with a common prefix: the same few-shot examples, or the same images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from vrft.policy.prompts import Prompt, image_parts, same_images
from vrft.types import SharedStart


@dataclass(frozen=True)
class Prefix:
    """Consecutive prompts with a common prefix.

    Attributes:
        length: number of tokens in the prefix; all tokens of a single prompt.
        prompts: the prompts.
        images: entries of the processor's output for the images of the packed row, in the order of its tokens.
    """

    length: int
    prompts: list[Prompt]
    images: list[Prompt]

    @classmethod
    def of_one(cls, prompt: Prompt) -> Prefix:
        """Return a single prompt, all of whose tokens are the prefix."""
        return cls(prompt["input_ids"].shape[1], [prompt], image_parts(prompt))

    @classmethod
    def of_start(cls, prompts: list[Prompt]) -> Prefix:
        """Return prompts whose prefix is their `SharedStart`."""
        start: SharedStart = prompts[0]["start"]
        return cls(start.length, prompts, [start.images, *(image_parts(prompt)[-1] for prompt in prompts)])

    @property
    def rests(self) -> list[int]:
        """Numbers of tokens of each prompt after the prefix."""
        return [prompt["input_ids"].shape[1] - self.length for prompt in self.prompts]


def runs(prompts: Sequence[Prompt], alike: Callable[[Prompt, Prompt], bool]) -> list[list[Prompt]]:
    """Split prompts into runs of consecutive prompts that are alike."""
    found: list[list[Prompt]] = []
    for prompt in prompts:
        if found and alike(found[-1][0], prompt):
            found[-1].append(prompt)
        else:
            found.append([prompt])
    return found


def same_start(one: Prompt, other: Prompt) -> bool:
    """Return whether two prompts have the same `SharedStart`."""
    return "start" in one and one["start"] is other.get("start")


def shared_starts(prompts: Sequence[Prompt]) -> list[Prefix]:
    """Group consecutive prompts with the same `SharedStart`, in order."""
    return [Prefix.of_start(run) if len(run) > 1 else Prefix.of_one(run[0]) for run in runs(prompts, same_start)]


def shared_prefixes(model: PreTrainedModel, prompts: Sequence[Prompt]) -> list[Prefix]:
    """Group consecutive prompts with the same `SharedStart` or, without one, with the same images, in order.

    The prefix of prompts with the same images contains all image tokens, and at least one token of each prompt follows
    it.
    """

    def alike(one: Prompt, other: Prompt) -> bool:
        return same_start(one, other) or ("start" not in one and same_images(one, other))

    prefixes = []
    for run in runs(prompts, alike):
        if len(run) == 1 or "start" in run[0]:
            prefixes += shared_starts(run)
            continue
        length = common_length([prompt["input_ids"][0] for prompt in run])
        if any((prompt["input_ids"][:, length:] == model.config.image_token_id).any() for prompt in run):
            prefixes += [Prefix.of_one(prompt) for prompt in run]
        else:
            prefixes.append(Prefix(length, run, image_parts(run[0])))
    return prefixes


def common_length(rows: Sequence[Tensor]) -> int:
    """Return the number of leading tokens common to all rows, less than the length of the shortest."""
    shortest = min(map(len, rows)) - 1
    same = (torch.stack([row[:shortest] for row in rows]) == rows[0][:shortest]).all(0)  # (shortest,)
    return int(same.long().cumprod(0).sum())
