"""Sampling by difficulty: bounded, exact on resume and the same on any number of ranks."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
import torch

from vrft.data.difficulty import Difficulty, DifficultySampler, SuccessRates, draw
from vrft.data.loaders import ResumableLoader
from vrft.data.record import Record
from vrft.data.success_rates import fingerprints
from vrft.errors import ConfigurationError
from vrft.rewards import DetectionIoU, PaperGroundingGIoU

HALF = Difficulty("iou", floor=0.25)


def sampler(size: int, batch: int, rank: int = 0, world: int = 1, difficulty: Difficulty = HALF) -> DifficultySampler:
    return DifficultySampler(size, batch, rank, world, seed=3, shuffle=True, difficulty=difficulty)


@pytest.mark.parametrize(("size", "count"), [(7, 7), (7, 40), (100, 100)])
def test_a_draw_has_each_index_as_often_as_its_weight_says_rounded_down_or_up(size: int, count: int) -> None:
    weights = torch.rand(size, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.1
    expected = count * weights / weights.sum()
    total = torch.zeros(size)
    for seed in range(300):
        counts = torch.bincount(draw(weights, count, torch.Generator().manual_seed(seed)), minlength=size)
        assert int(counts.sum()) == count
        assert bool(((counts == expected.floor()) | (counts == expected.ceil())).all())
        total += counts
    torch.testing.assert_close(total / 300, expected.float(), rtol=0, atol=0.1)


def test_without_answers_a_pass_has_each_sample_once() -> None:
    assert Counter(sampler(20, 4)) == dict.fromkeys(range(20), 1)
    assert Counter(sampler(4, 8)) == dict.fromkeys(range(4), 2)


def test_what_is_always_right_or_always_wrong_is_asked_less_often_but_never_starves() -> None:
    one = sampler(40, 4)
    asked = Counter[int]()
    for epoch in range(60):
        one.set_epoch(epoch)
        one.begin_pass()
        for index in one:
            asked[index] += 1
            right = 8 if index < 10 else 0 if index < 20 else 4
            one.rates.record([(index, right, 8)])
    shares = [sum(asked[i] for i in part) / 600 for part in (range(10), range(10, 20), range(20, 40))]
    assert 0.25 < shares[0] < 0.7  # without weights: 1
    assert 0.25 < shares[1] < 0.7
    assert min(asked.values()) >= 0.25 * 60
    assert max(asked.values()) <= 60 / 0.25


def test_rates_do_not_depend_on_the_ranks_and_the_order_of_a_step() -> None:
    rows = [(random.Random(i).randrange(5), random.Random(i).randrange(9), 8) for i in range(12)] + [(1, 0, 0)]
    one, other = SuccessRates(6), SuccessRates(6)
    one.record(rows)
    other.record([rows[i] for i in random.Random(0).sample(range(len(rows)), len(rows))])
    assert torch.equal(one.weights(0.1), other.weights(0.1))
    assert one.answers[5] == 0
    one.record([(0, 3, 8)])
    assert float(one.successes[0]) == pytest.approx(0.9 * float(other.successes[0]) + 3)
    one.record([(0, 0, 0)])  # the reward did not apply
    assert float(one.answers[0]) == pytest.approx(0.9 * float(other.answers[0]) + 8)


def test_ranks_share_one_draw() -> None:
    alone, first, second = sampler(20, 4), sampler(20, 2, 0, 2), sampler(20, 2, 1, 2)
    for each in (alone, first, second):
        each.rates.record([(0, 8, 8), (1, 0, 8)])
        each.begin_pass()
    assert [index for pair in zip(first, second, strict=True) for index in pair] == [*alone]
    assert Counter(alone) != dict.fromkeys(range(20), 1)


@pytest.mark.parametrize("after", [1, 3, 6, 7, 11])
def test_a_loader_resumes_bit_for_bit_with_the_weights_of_its_pass(after: int) -> None:
    def loader() -> ResumableLoader:
        return ResumableLoader(list(range(12)), batch_size=2, sampler=sampler(12, 2), collate_fn=list)  # type: ignore[arg-type]

    def train(one: ResumableLoader, steps: int) -> list[list[int]]:
        """Take steps as Lightning does: after an epoch's last batch, the next epoch begins."""
        found: list[list[int]] = []
        while len(found) < steps:
            for batch in one:
                found.append(batch)
                one.sampler.rates.record((i, 8 * (i % 2), 8) for i in batch)  # type: ignore[attr-defined]
                if len(found) == steps:
                    return found
            one.sampler.set_epoch(one.sampler.epoch + 1)
        return found

    expected, part = train(loader(), 14), loader()
    assert train(part, after) == expected[:after]
    again = loader()
    again.load_state_dict(part.state_dict())
    if after % 6 == 0:
        again.sampler.set_epoch(again.sampler.epoch + 1)
    assert train(again, 14 - after) == expected[after:]


def test_settings_and_checkpoints_that_do_not_fit_are_refused() -> None:
    rewards = {"iou": DetectionIoU(), "giou": PaperGroundingGIoU()}
    with pytest.raises(ConfigurationError, match=r"difficulty.reward: expected one of model.rewards, giou, got iou"):
        HALF.check({"giou": rewards["giou"]})
    for floor in (0.0, 1.5, float("nan")):
        with pytest.raises(ConfigurationError, match=r"difficulty.floor: expected above 0 and at most 1"):
            Difficulty("iou", floor=floor).check(rewards)
    Difficulty("giou", success=2.0).check(rewards)
    for success in (0.0, 1.5, float("nan"), float("inf")):
        said = rf"difficulty\.success: expected above 0 and at most 1, the bounds of iou, got {success}"
        with pytest.raises(ConfigurationError, match=said):
            Difficulty("iou", success=success).check(rewards)
    with pytest.raises(ConfigurationError, match="its success rates are of 5 training samples, and data has 6"):
        sampler(6, 2).load_state_dict(sampler(5, 2).state_dict())
    sampler(6, 2).load_state_dict({"samples": 2, "epoch": 0})  # of a run that began without


def test_other_samples_have_no_rates_after_a_resume() -> None:
    def records(*targets: str) -> list[Record]:
        return [Record((Path(f"{i}.png"),), "", i, "", target) for i, target in enumerate(targets)]

    def of(*targets: str) -> DifficultySampler:
        return DifficultySampler(3, 1, 0, 1, 3, True, HALF, fingerprints(records(*targets)))

    one = of("cat", "dog", "cat")
    one.rates.record([(i, 8, 8) for i in range(3)])
    same, changed = of("cat", "dog", "cat"), of("cat", "cow", "cat")
    same.load_state_dict(one.state_dict())
    assert same.rates.answers.tolist() == [8, 8, 8]
    with pytest.warns(UserWarning, match="ckpt_path: 1 of 3 training samples differ from those of the checkpoint"):
        changed.load_state_dict(one.state_dict())
    assert (changed.rates.successes.tolist(), changed.rates.answers.tolist()) == ([8, 0, 8], [8, 0, 8])
    assert one.rates.answers.tolist() == [8, 8, 8]


def test_only_completions_that_the_reward_applies_to_count() -> None:
    # Infinity stands for a score that was not finite, which is no success.
    scores = torch.tensor([[0.5, 0.4, 1.0], [torch.nan, 0.9, torch.nan], [torch.inf, 0.1, torch.inf]])
    successes, answers = HALF.successes(scores)
    assert (successes.tolist(), answers.tolist()) == ([2, 1, 0], [3, 1, 1])
