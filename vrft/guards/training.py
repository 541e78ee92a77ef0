"""Guards over the numbers of training: equal rewards, entropy, length, held-out scores, updates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from vrft.guards.base import WINDOW, Guard, Seen, mean

FEWER, MANY_GROUPS = 5, 20
"""So many rollouts are enough to say that all rewards are equal if they have so many groups on the first rank."""

COLLAPSED, LITTLE_ENTROPY = 0.1, 0.05
"""Entropy has collapsed below this share of what it was at first, if it is also below so many nats per token."""

NEAR_LIMIT, GROWN = 0.8, 1.25
"""Completions grow to the limit if their mean is above this share of it, and so many times what it was at first."""

FALL, LEAST_FALL = 0.1, 0.02
"""A held-out score has fallen if it is below its best by this share of it, and by so much."""

SCORES = ("coco/AP", "lvis/AP", "accuracy", "mIoU", "reward")
"""Held-out scores that may fall, without `val/`."""

MOVED = 0.05
"""Updates are too small if they change less than this share of the weights."""


class EqualRewards(Guard):
    """All completions of each prompt earn the same, so that nothing is learnt."""

    name = "equal_rewards"
    least = FEWER

    def note(self, seen: Seen) -> list[float] | None:
        found = numbers(seen, "train/zero_variance_groups", "train/reward")
        return None if found is None else [*found, len(seen.samples)]

    def judge(self, seen: Seen) -> str | None:
        tied = [*takewhile(lambda kept: kept[0] == 1, reversed(self.recent))]
        if len(tied) < WINDOW and (len(tied) < FEWER or sum(groups for *_, groups in tied) < MANY_GROUPS):
            return None
        reward = mean([reward for _, reward, _ in tied])
        return (
            f"in each group of the last {len(tied)} rollouts all completions earned the same (mean reward {reward:.2f})"
            ", so nothing is learnt; other prompts (model.max_extra_rollouts draws more), a higher model.temperature, "
            "or a reward that tells more answers apart"
        )


class EntropyCollapse(Guard):
    """The policy hardly samples anything but one answer."""

    name = "entropy_collapse"

    def note(self, seen: Seen) -> float | None:
        found = numbers(seen, "train/entropy")
        return None if found is None else found[0]

    def judge(self, seen: Seen) -> str | None:
        before, now = mean(self.first), mean(self.recent)
        if now >= COLLAPSED * before or now >= LITTLE_ENTROPY:
            return None
        return (
            f"entropy fell from {before:.3f} to {now:.4f} nats per token: completions of a prompt are nearly the same "
            "and nothing new is found; a lower learning rate, a higher model.temperature, model.beta or "
            "model.epsilon_high"
        )


class GrowingCompletions(Guard):
    """Completions grow until they are cut off."""

    name = "growing_completions"

    def note(self, seen: Seen) -> list[float] | None:
        return numbers(seen, "train/completion_length", "train/truncated")

    def judge(self, seen: Seen) -> str | None:
        before, now = (mean([length for length, _ in rollouts]) for rollouts in (self.first, self.recent))
        if now < NEAR_LIMIT * seen.limit or now < GROWN * before:
            return None
        cut = mean([share for _, share in self.recent])
        return (
            f"completions grew from {before:.0f} to {now:.0f} tokens, and {cut:.0%} are cut off at "
            f"model.max_completion_length={seen.limit}; a higher limit, model.overlong_buffer or a Length reward"
        )


class TinyUpdates(Guard):
    """Updates are smaller than half the distance to the next number that the weights' dtype has."""

    name = "tiny_updates"

    def note(self, seen: Seen) -> list[float] | None:
        found = numbers(seen, "train/learning_rate", "train/grad_norm", "train/skipped_steps")
        if found is None or seen.weights is None or found[0] == 0 or found[1] == 0 or found[2] > 0:
            return None
        before, after = seen.weights
        return [float((before != after).float().mean()), found[0]]

    def judge(self, seen: Seen) -> str | None:
        moved, rate = (mean(values) for values in zip(*self.recent, strict=True))
        if moved >= MOVED or seen.weights is None:
            return None
        weights = seen.weights[0]
        dtype = str(weights.dtype).removeprefix("torch.")
        return (
            f"only {moved:.1%} of the weights move: the learning rate is {rate:.1e} and the next {dtype} number is "
            f"{spacing(weights):.1e} away, so updates are rounded off; a higher model.optimizer.lr"
            + ("" if weights.dtype == torch.float32 else ", or float32 weights")
        )


class Overfitting(Guard):
    """Training rewards rise, or the loss falls, while a held-out score falls."""

    name = "overfitting"

    def __init__(self) -> None:
        super().__init__()
        self.evaluations: list[dict[str, Any]] = []
        self.said: str | None = None
        self.supervised = False

    def watch(self, seen: Seen) -> str | None:
        super().watch(seen)
        return self.said

    def note(self, seen: Seen) -> float | None:
        """What training raises: the reward, or the loss times -1."""
        self.supervised = "train/loss" in seen.metrics
        found = numbers(seen, "train/loss" if self.supervised else "train/reward")
        return None if found is None else -found[0] if self.supervised else found[0]

    def judge(self, seen: Seen) -> str | None:
        return self.said  # it changes with an evaluation

    def evaluated(self, scores: Mapping[str, float]) -> str | None:
        """Compare held-out scores with the best of each so far; what is wrong, if they fell while training rose."""
        self.evaluations.append({"scores": dict(scores), "training": [*self.recent]})
        self.said = next((text for name in scores if (text := self._fall(name))), None)
        return self.said

    def _fall(self, name: str) -> str | None:
        known = [entry for entry in self.evaluations if name in entry["scores"]]
        best = max(known, key=lambda entry: entry["scores"][name])
        now = known[-1]
        high, low = best["scores"][name], now["scores"][name]
        if high - low < max(FALL * abs(high), LEAST_FALL):
            return None
        before, after = best["training"] or self.first, now["training"]
        if not rose(before, after):
            return None
        what, sign = ("the loss fell", -1) if self.supervised else ("the reward rose", 1)
        return (
            f"{what} from {sign * mean(before):.3f} to {sign * mean(after):.3f} in training while val/{name} fell from "
            f"{high:.3f} to {low:.3f}; look at what earns the reward, take an earlier checkpoint, or fewer steps, more "
            "data, a higher model.beta"
        )

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {
            "evaluations": self.evaluations,
            "said": self.said,
            "supervised": self.supervised,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.evaluations, self.said, self.supervised = state["evaluations"], state["said"], state["supervised"]


def numbers(seen: Seen, *names: str) -> list[float] | None:
    """Some of what was logged; None if it is not all there, or not finite."""
    if any(name not in seen.metrics for name in names):
        return None
    found = [float(seen.metrics[name]) for name in names]
    return found if all(map(math.isfinite, found)) else None


def rose(before: Sequence[float], after: Sequence[float]) -> bool:
    """Whether the mean is higher by more than two standard errors of the difference.

    >>> rose([1.0, 1.2, 0.8], [1.1, 1.3, 0.9]), rose([1.0, 1.2, 0.8], [2.0, 2.2, 1.8])
    (False, True)
    """
    if not before or not after:
        return False
    error = sum(sum((v - mean(values)) ** 2 for v in values) / len(values) ** 2 for values in (before, after)) ** 0.5
    return mean(after) - mean(before) > 2 * error


def spacing(weights: Tensor) -> float:
    """Distance of a weight to the next number of its dtype, the median over weights other than 0.

    A number m * 2^e with m in 1..2 has its neighbour at eps * 2^e.

    >>> spacing(torch.tensor([1.0, 0.0], dtype=torch.bfloat16))
    0.0078125
    """
    _, exponent = torch.frexp(weights[weights != 0].float())
    return float(torch.finfo(weights.dtype).eps * 2.0 ** (exponent - 1).float().median()) if exponent.numel() else 0.0
