"""Guards on training metrics: equal rewards, entropy, completion length, held-out scores, updates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from vrft.guards.base import WINDOW, Guard, Observation, mean

EQUAL_REWARDS_MIN_STEPS, EQUAL_REWARDS_MIN_GROUPS = 5, 20
"""Numbers of steps, and of groups on the first rank, from which fewer steps than WINDOW suffice for the warning."""

COLLAPSE_RATIO, COLLAPSE_ENTROPY = 0.1, 0.05
"""Entropy has collapsed if it is below this share of its initial value and below this value in nats per token."""

NEAR_LIMIT, GROWTH = 0.8, 1.25
"""Completions grow to the limit if their mean length exceeds this share of it and this multiple of the initial mean."""

RELATIVE_DROP, ABSOLUTE_DROP = 0.1, 0.02
"""A held-out score has dropped if it is below its best value by this share of it and by this amount."""

SCORES = ("coco/AP", "lvis/AP", "accuracy", "mIoU", "reward")
"""Held-out scores to watch, without `val/`."""

MIN_JUDGE_GAP, MIN_JUDGE_SHARE = 0.02, 0.5
"""A judge discriminates too little if P(yes) of an answer exceeds P(yes) of an answer to another prompt by less than
this difference, or by less than this share of the initial difference."""

MIN_CHANGED_SHARE = 0.05
"""Updates are too small if they change a smaller share of the weights."""


class EqualRewards(Guard):
    """Warns if all completions of each prompt earn the same reward, so that the gradient is zero."""

    name = "equal_rewards"
    min_steps = EQUAL_REWARDS_MIN_STEPS

    def note(self, seen: Observation) -> list[float] | None:
        found = numbers(seen, "train/zero_variance_groups", "train/reward")
        return None if found is None else [*found, len(seen.samples)]

    def judge(self, seen: Observation) -> str | None:
        equal = [*takewhile(lambda kept: kept[0] == 1, reversed(self.recent))]
        groups = sum(groups for *_, groups in equal)
        if len(equal) < WINDOW and (len(equal) < EQUAL_REWARDS_MIN_STEPS or groups < EQUAL_REWARDS_MIN_GROUPS):
            return None
        reward = mean([reward for _, reward, _ in equal])
        return (
            f"all completions of each prompt in the last {len(equal)} rollouts earned the same (mean reward "
            f"{reward:.2f}), so nothing is learned; try other prompts (model.max_extra_rollouts draws more), a higher "
            "model.temperature, or a reward that distinguishes more answers"
        )


class EntropyCollapse(Guard):
    """Warns if the policy samples almost the same completion every time."""

    name = "entropy_collapse"

    def note(self, seen: Observation) -> float | None:
        found = numbers(seen, "train/entropy")
        return None if found is None else found[0]

    def judge(self, seen: Observation) -> str | None:
        before, now = mean(self.first), mean(self.recent)
        if now >= COLLAPSE_RATIO * before or now >= COLLAPSE_ENTROPY:
            return None
        return (
            f"entropy fell from {before:.3f} to {now:.4f} nats per token, so that completions of a prompt are nearly "
            "identical; try a lower learning rate, a higher model.temperature, model.beta or model.epsilon_high"
        )


class GrowingCompletions(Guard):
    """Warns if completions grow until they are truncated."""

    name = "growing_completions"

    def note(self, seen: Observation) -> list[float] | None:
        return numbers(seen, "train/completion_length", "train/truncated")

    def judge(self, seen: Observation) -> str | None:
        before, now = (mean([length for length, _ in rollouts]) for rollouts in (self.first, self.recent))
        if now < NEAR_LIMIT * seen.limit or now < GROWTH * before:
            return None
        truncated = mean([share for _, share in self.recent])
        return (
            f"completions grew from {before:.0f} to {now:.0f} tokens, and {truncated:.0%} are truncated at "
            f"model.max_completion_length={seen.limit}; try a higher limit, model.overlong_buffer or a Length reward"
        )


class AgreeableJudge(Guard):
    """Warns if the judge of `SelfPreference` approves of answers to other prompts almost as much as of right ones."""

    name = "agreeable_judge"

    def note(self, seen: Observation) -> list[float] | None:
        return numbers(seen, "train/self_preference_gap")

    def judge(self, seen: Observation) -> str | None:
        before, gap = (mean([gap for (gap,) in rollouts]) for rollouts in (self.first, self.recent))
        if gap >= max(MIN_JUDGE_GAP, MIN_JUDGE_SHARE * before):
            return None
        if gap < MIN_JUDGE_GAP:
            found = (
                f"{gap:.3f} on average ({before:.3f} at first), so it hardly tells right answers from wrong ones and "
                "the reward of SelfPreference says little"
            )
        else:
            found = (
                f"{gap:.3f} on average, less than half of the {before:.3f} at first, so it tells answers apart less "
                "well than before and may come to approve of any"
            )
        return (
            f"the judge's P(yes) of an answer exceeds that of an answer to another prompt by {found}; stop here, look "
            "at a held-out score, and try a higher model.beta, another question, judge: reference if the policy "
            "judges, or leave the reward out"
        )


class TinyUpdates(Guard):
    """Warns if most updates are lost to rounding: smaller than half the spacing of the weights' dtype."""

    name = "tiny_updates"

    def note(self, seen: Observation) -> list[float] | None:
        found = numbers(seen, "train/learning_rate", "train/grad_norm", "train/skipped_steps")
        if found is None or seen.weights is None or found[0] == 0 or found[1] == 0 or found[2] > 0:
            return None
        before, after = seen.weights
        return [float((before != after).float().mean()), found[0]]

    def judge(self, seen: Observation) -> str | None:
        changed, rate = (mean(values) for values in zip(*self.recent, strict=True))
        if changed >= MIN_CHANGED_SHARE or seen.weights is None:
            return None
        weights = seen.weights[0]
        dtype = str(weights.dtype).removeprefix("torch.")
        return (
            f"only {changed:.1%} of the weights change: the learning rate is {rate:.1e} and the next {dtype} number is "
            f"{spacing(weights):.1e} away, so updates are lost to rounding; try a higher model.optimizer.lr"
            + ("" if weights.dtype == torch.float32 else ", or float32 weights")
        )


class Overfitting(Guard):
    """Warns if a held-out score drops while the training reward rises or the training loss falls."""

    name = "overfitting"

    def __init__(self) -> None:
        super().__init__()
        self.evaluations: list[dict[str, Any]] = []
        self.message: str | None = None
        self.supervised = False

    def watch(self, seen: Observation) -> str | None:
        super().watch(seen)
        return self.message

    def note(self, seen: Observation) -> float | None:
        """Return the quantity that training increases: the reward, or the negative loss."""
        self.supervised = "train/loss" in seen.metrics
        found = numbers(seen, "train/loss" if self.supervised else "train/reward")
        return None if found is None else -found[0] if self.supervised else found[0]

    def judge(self, seen: Observation) -> str | None:
        return self.message  # set by `evaluated`

    def evaluated(self, scores: Mapping[str, float]) -> str | None:
        """Compare held-out scores with their best values. Return a warning if one dropped while training improved."""
        self.evaluations.append({"scores": dict(scores), "training": [*self.recent]})
        self.message = next((text for name in scores if (text := self._drop(name))), None)
        return self.message

    def _drop(self, name: str) -> str | None:
        known = [entry for entry in self.evaluations if name in entry["scores"]]
        best = max(known, key=lambda entry: entry["scores"][name])
        now = known[-1]
        high, low = best["scores"][name], now["scores"][name]
        if high - low < max(RELATIVE_DROP * abs(high), ABSOLUTE_DROP):
            return None
        before, after = best["training"] or self.first, now["training"]
        if not rose(before, after):
            return None
        what, sign = ("the loss fell", -1) if self.supervised else ("the reward rose", 1)
        return (
            f"{what} from {sign * mean(before):.3f} to {sign * mean(after):.3f} in training while val/{name} fell from "
            f"{high:.3f} to {low:.3f}; check what earns the reward, use an earlier checkpoint, or try fewer steps, "
            "more data or a higher model.beta"
        )

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {
            "evaluations": self.evaluations,
            "said": self.message,
            "supervised": self.supervised,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.evaluations, self.message, self.supervised = state["evaluations"], state["said"], state["supervised"]


def numbers(seen: Observation, *names: str) -> list[float] | None:
    """Return logged metrics by name, or None if one is missing or not finite."""
    if any(name not in seen.metrics for name in names):
        return None
    found = [float(seen.metrics[name]) for name in names]
    return found if all(map(math.isfinite, found)) else None


def rose(before: Sequence[float], after: Sequence[float]) -> bool:
    """Return whether the mean rose by more than two standard errors of the difference.

    >>> rose([1.0, 1.2, 0.8], [1.1, 1.3, 0.9]), rose([1.0, 1.2, 0.8], [2.0, 2.2, 1.8])
    (False, True)
    """
    if not before or not after:
        return False
    error = sum(sum((v - mean(values)) ** 2 for v in values) / len(values) ** 2 for values in (before, after)) ** 0.5
    return mean(after) - mean(before) > 2 * error


def spacing(weights: Tensor) -> float:
    """Return the median, over nonzero weights, of the distance from a weight to the next number of its dtype.

    The distance is eps * 2^e for a number m * 2^e with 1 <= m < 2.

    >>> spacing(torch.tensor([1.0, 0.0], dtype=torch.bfloat16))
    0.0078125
    """
    _, exponent = torch.frexp(weights[weights != 0].float())
    return float(torch.finfo(weights.dtype).eps * 2.0 ** (exponent - 1).float().median()) if exponent.numel() else 0.0
