"""Four properties of rewards on boxes: the truth, surplus boxes, boxes that are left out, and honest confidences."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import product
from math import inf, nan

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching

from tests.helpers.answers import sample
from vrft.boxes import iou_matrix
from vrft.rewards import (
    DetectionConfidence,
    DetectionDIoU,
    DetectionF1,
    DetectionGIoU,
    DetectionIoU,
    Format,
    PaperConfidence,
    Reward,
)
from vrft.types import Answer, Detection

Boxes = tuple[Detection, ...]
DEFAULT: list[Reward] = [DetectionIoU(weight=0.5), DetectionConfidence(weight=3.0), Format()]
"""The rewards of the detection configs."""
LABELS = ("cat", "dog")


def box(rng: random.Random, score: float = 1.0) -> Detection:
    """Draw a box on a coarse grid, where boxes often coincide."""
    (x0, x1), (y0, y1) = (sorted(rng.sample(range(6), 2)) for _ in range(2))
    return Detection((float(x0), float(y0), float(x1), float(y1)), rng.choice(LABELS), score)


def scenes(seed: int, count: int) -> Iterator[tuple[random.Random, Boxes, Boxes]]:
    """Yield true boxes and an answer that has some of them, some moved a little, and others."""
    rng = random.Random(seed)
    for _ in range(count):
        true = tuple(box(rng) for _ in range(rng.choice([0, 1, 1, 2, 3, 5, 9])))
        found = [one._replace(score=rng.random()) for one in rng.sample(true, rng.randint(0, len(true)))]
        found += [box(rng, rng.choice([0.0, 1.0, rng.random()])) for _ in range(rng.randint(0, len(true) + 2))]
        found = [stretched(rng, one) if rng.random() < 0.3 else one for one in found]
        yield rng, true, tuple(rng.sample(found, len(found)))


def stretched(rng: random.Random, one: Detection) -> Detection:
    x0, y0, x1, y1 = one.box
    return one._replace(box=(x0, y0, x1 + rng.uniform(-0.3, 0.9) * (x1 - x0), y1))


def earned(rewards: Sequence[Reward], found: Boxes | None, true: Boxes) -> float:
    answer, about = Answer("", "", found, True), sample(true)
    return sum(reward.weight * reward.bounded_scores([answer], [about])[0] for reward in rewards)


@cache  # tests of several rewards count those of the same answers
def hits(found: Boxes, true: Boxes) -> int:
    """Return the largest number of pairs with the same label and IoU above 0.5."""
    if not found or not true:
        return 0
    same = np.array([[a.label == b.label for b in true] for a in found])
    near = same & (iou_matrix([a.box for a in found], [b.box for b in true]) > 0.5)
    return int((maximum_bipartite_matching(csr_matrix(near), perm_type="column") >= 0).sum())


def f1(found: Boxes, true: Boxes) -> float:
    return 2 * hits(found, true) / (len(found) + len(true)) if found or true else 1.0


RULES = [DetectionIoU, DetectionGIoU, DetectionDIoU, DetectionF1, DetectionConfidence]
SUMS = [*([rule()] for rule in RULES), DEFAULT]


@pytest.mark.parametrize("rewards", SUMS, ids=lambda rewards: type(rewards[0]).__name__ + "+" * (len(rewards) > 1))
def test_nothing_earns_more_than_the_truth(rewards: list[Reward]) -> None:
    for _, true, found in scenes(0, 200):
        assert earned(rewards, found, true) <= earned(rewards, true, true) + 1e-9


@pytest.mark.parametrize("rewards", [[DetectionF1()], [DetectionConfidence()], DEFAULT], ids=["F1", "own", "sum"])
def test_a_box_more_than_there_are_objects_never_pays(rewards: list[Reward]) -> None:
    tried = 0
    for rng, true, found in scenes(1, 400):
        if len(found) < len(true):
            continue
        for _ in range(3):
            near = rng.choice([*true, *found]) if true or found else box(rng)
            more = rng.choice([near, stretched(rng, near), box(rng)])._replace(score=rng.choice([0.0, 1.0, 0.3]))
            both = (*found, more) if rng.random() < 0.5 else (more, *found)
            if hits(both, true) == hits(found, true):
                assert earned(rewards, both, true) <= earned(rewards, found, true) + 1e-9
                tried += 1
    assert tried > 200


@pytest.mark.parametrize("rewards", [[DetectionF1()], [DetectionConfidence()], DEFAULT], ids=["F1", "own", "sum"])
def test_leaving_out_a_box_that_finds_an_object_never_pays(rewards: list[Reward]) -> None:
    tried = 0
    for _, true, found in scenes(2, 400):
        for i in range(len(found)):
            less = found[:i] + found[i + 1 :]
            if hits(less, true) < hits(found, true):
                assert earned(rewards, less, true) <= earned(rewards, found, true) + 1e-9
                tried += 1
    assert tried > 200


def best_confidence(rewards: list[Reward], found: Boxes, i: int, right: Boxes, wrong: Boxes, p: float) -> float:
    """Return the confidence of box i that earns most if the scene is `right` with probability p and else `wrong`."""

    def expected(c: float) -> float:
        stated = (*found[:i], found[i]._replace(score=c), *found[i + 1 :])
        return p * earned(rewards, stated, right) + (1 - p) * earned(rewards, stated, wrong)

    return max((c / 20 for c in range(21)), key=expected)


@pytest.mark.parametrize("rewards", [[DetectionConfidence()], DEFAULT], ids=["own", "sum"])
def test_a_policy_earns_most_by_stating_the_probability_that_a_box_is_right(rewards: list[Reward]) -> None:
    far = Detection((90.0, 90.0, 99.0, 99.0), "cat")
    tried = 0
    for rng, true, found in scenes(3, 60):
        i, p = rng.randrange(len(found) or 1), rng.choice([0.05, 0.3, 0.5, 0.85])
        if not found or hits((found[i],), tuple(one for one in (*true, *found[:i], *found[i + 1 :]))):
            continue  # whether the box is right depends on others
        right, wrong = (*true, found[i]), (*true, far)
        assert best_confidence(rewards, found, i, right, wrong, p) == p
        tried += 1
    assert tried > 15


def test_the_papers_confidence_reward_makes_a_policy_overstate() -> None:
    true = (Detection((0.0, 0.0, 4.0, 4.0), "cat"),)
    wrong = (Detection((90.0, 90.0, 99.0, 99.0), "cat"),)
    assert best_confidence([PaperConfidence()], true, 0, true, wrong, 0.6) == 1
    assert best_confidence([PaperConfidence()], true, 0, true, wrong, 0.4) == 0


def test_answers_with_one_confidence_earn_in_the_order_of_their_f1() -> None:
    compared = 0
    for rng, true, _ in scenes(4, 60):
        tried = []
        for _, share in product(range(6), (0.2, 0.6, 1.0)):
            found = [stretched(rng, one) for one in true if rng.random() < share]
            found += [box(rng) for _ in range(rng.choice([0, 0, 1, len(true), 4 * len(true)]))]
            score = rng.choice([0.0, 0.5, 1.0])
            answer = tuple(one._replace(score=score) for one in found)
            tried.append((f1(answer, true), earned(DEFAULT, answer, true)))
        for (a, high), (b, low) in product(tried, tried):
            if a - b >= 0.2:
                assert high >= low
                compared += 1
    assert compared > 1000


@pytest.mark.parametrize("rewards", SUMS, ids=lambda rewards: type(rewards[0]).__name__ + "+" * (len(rewards) > 1))
def test_no_readable_answer_earns_less_than_an_unreadable_one(rewards: list[Reward]) -> None:
    for _, true, found in scenes(5, 100):
        sure = tuple(one._replace(score=1.0) for one in found)
        for answer in (found, sure, sure * 10, ()):
            assert earned(rewards, answer, true) >= earned(rewards, None, true)


def test_surplus_boxes_of_any_number_never_reach_an_empty_answer() -> None:
    far, cat = Detection((90.0, 90.0, 99.0, 99.0), "cat", 0.0), Detection((0.0, 0.0, 4.0, 4.0), "cat")
    for true in ((), (cat,), (cat,) * 3):
        scores = [earned([DetectionConfidence()], (far,) * n, true) for n in (len(true), 10, 100, 10_000)]
        assert scores == sorted(scores, reverse=True)
        assert 0 < scores[-1] < earned([DetectionConfidence()], (), true)


@pytest.mark.parametrize("confidence", [nan, inf, -inf, -0.1, 1.1])
@pytest.mark.parametrize("rule", [*RULES, PaperConfidence])
def test_confidences_outside_0_to_1_make_an_answer_unreadable(rule: type[Reward], confidence: float) -> None:
    cat = Detection((0.0, 0.0, 4.0, 4.0), "cat")
    assert earned([rule()], (cat, cat._replace(score=confidence)), (cat,)) == 0
