"""Scores as tensors, and their means over held-out samples."""

from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from typing import Any, cast

import pytest
import torch
from torch import nn

from tests.helpers.answers import NONE, ONE, answers, sample
from vrft.rewards import Reward
from vrft.training.collector import Collector
from vrft.training.scoring import HeldOutMeans, models_of, score_answers
from vrft.types import Answer, Question, Rollout, ScoredRollout


class Characters(Reward):
    """The length of the answer; does not apply to samples without a target, and fails for long answers."""

    bounds = (0.0, 100.0)

    def score(self, answer: Answer, sample: Question) -> float | None:
        return (math.nan if len(answer.text) > 9 else float(len(answer.text))) if sample.target else None


def test_scores_and_their_weighted_sum() -> None:
    rewards = {"a": Characters(), "b": Characters(weight=0.5)}
    asked = [sample(ONE), sample(NONE), sample(ONE)]
    with pytest.warns(UserWarning, match="Characters returned nan"):
        scores, total = score_answers(rewards, answers("abc", "a", "a" * 10), asked, torch.device("cpu"))
    assert {name: values.dtype for name, values in scores.items()} == {"a": torch.float32, "b": torch.float32}
    assert scores["a"].nan_to_num(-1, math.inf).tolist() == [3, -1, math.inf]
    assert total.nan_to_num(-1).tolist() == [4.5, 0, -1]


class Rank:
    """One of two ranks in two threads: a module, its trainer and its strategy."""

    def __init__(self, number: int, waits: threading.Barrier, parts: dict[int, Any]) -> None:
        self.number, self.waits, self.parts = number, waits, parts
        self.trainer, self.strategy, self.batches_per_step = self, self, 1
        self.logged: dict[str, float] = {}

    def reduce(self, tensor: torch.Tensor, reduce_op: str = "mean") -> torch.Tensor:
        self.parts[self.number] = tensor
        self.waits.wait()
        both = torch.stack([self.parts[0], self.parts[1]])
        self.waits.wait()
        return both.sum(0) if reduce_op == "sum" else both.mean(0)

    def log(self, name: str, value: Any, sync_dist: bool = False, **_: Any) -> None:
        value = torch.as_tensor(value, dtype=torch.float32)
        self.logged[name] = float(self.reduce(value) if sync_dist else value)


def test_logged_rewards_are_means_over_the_completions_of_all_ranks() -> None:
    """A reward that applies to no completion of one rank, or to more of one rank than of the other."""
    waits, parts = threading.Barrier(2, timeout=30), dict[int, Any]()
    ranks = [Rank(number, waits, parts) for number in (0, 1)]
    scores = [{"a": [math.nan] * 4, "b": [1.0, math.nan, math.inf, math.nan]}, {"a": [0.2, 0.4] * 2, "b": [0.0] * 4}]

    def log(rank: Rank, rewards: dict[str, list[float]]) -> None:
        collector = Collector(cast(Any, rank), *[cast(Any, None)] * 2, 2, 2, 0, 1, None)
        ids = torch.ones(4, 3)
        rollout = Rollout(ids, ids, ids, ids, ids[:, 0] > 0, [""] * 4)
        given = {name: torch.tensor(values) for name, values in rewards.items()}
        scored = ScoredRollout(cast(Any, None), rollout, answers("a"), given, given["b"].view(2, 2))
        collector.log(scored, torch.zeros(2), 2)

    with ThreadPoolExecutor(2) as pool:
        [*pool.map(log, ranks, scores)]
    for rank in ranks:
        assert rank.logged["train/reward/a"] == pytest.approx(0.3)
        assert rank.logged["train/reward/b"] == rank.logged["train/reward"] == pytest.approx(0.2)


def test_means_leave_out_what_is_not_finite() -> None:
    means = HeldOutMeans()
    for values in ([0.1, math.nan, 0.7], [], [math.inf, 0.4]):
        means.add({"a": torch.tensor(values), "b": torch.tensor([math.nan])})
    kept = [Fraction(torch.tensor(value).item()) for value in (0.1, 0.7, 0.4)]
    assert means.compute(1)["a"] == float(sum(kept) / 3)
    assert math.isnan(means.compute(1)["b"])
    means.reset()
    assert means.compute(1) == {}


def test_means_are_over_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    other = HeldOutMeans()
    other.add({"a": torch.tensor([1.0]), "c": torch.tensor([5.0])})

    def gather(parts: list[object], own: object) -> None:
        parts[:] = [own, {name: (sum(values), len(values)) for name, values in other.scores.items()}]

    monkeypatch.setattr("torch.distributed.all_gather_object", gather)
    means = HeldOutMeans()
    means.add({"a": torch.tensor([2.0, 6.0])})
    assert means.compute(2) == {"a": 3.0, "c": 5.0}


def test_models_of_rewards_are_found() -> None:
    learned = Characters()
    learned.model = nn.Linear(1, 1)  # type: ignore[attr-defined]
    assert [*models_of({"plain": Characters(), "learned": learned})] == [learned.model]  # type: ignore[attr-defined]
