"""Agreement with the other answers to a question, by labels."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from tests.helpers.answers import FRAME, NONE, overlap_of, sample
from vrft.cli.score import Record
from vrft.rewards import Consistency
from vrft.tasks import ClassificationTask, MultiCategoryDetectionTask
from vrft.types import Answer, Detection

Boxes = Sequence[tuple[str, tuple[float, float, float, float]]]


def answer(boxes: Boxes | None) -> Answer:
    value = None if boxes is None else tuple(Detection(box, label, 0.5) for label, box in boxes)
    return Answer("", "", value, True)


def plain_agreement(a: Boxes | None, b: Boxes | None) -> float:
    """Match each box in order with the free box of its label that it overlaps most."""
    if a is None or b is None:
        return 0.0
    free, total = list(b), 0.0
    for label, box in a:
        ious = [(overlap_of(list(box), list(other))[0] if name == label else 0.0) for name, other in free]
        if ious and max(ious) > 0:
            total += max(ious)
            free.pop(ious.index(max(ious)))
    return total / max(len(a), len(b)) if a or b else 1.0


def test_the_score_is_the_mean_of_a_plain_loop_over_the_other_answers() -> None:
    rng, consistency, positive = random.Random(0), Consistency(), 0
    for _ in range(100):
        group: list[Boxes | None] = []
        for _ in range(5):
            corners = [(rng.uniform(0, 50), rng.uniform(0, 50)) for _ in range(rng.randint(0, 4))]
            boxes = [(rng.choice(["cat", "dog"]), (x, y, x + rng.uniform(9, 50), y + 30)) for x, y in corners]
            group.append(boxes if rng.random() < 0.9 else None)
        expected = [
            sum(plain_agreement(one, other) for other in group[:i] + group[i + 1 :]) / 4 for i, one in enumerate(group)
        ]
        found = consistency.scores([answer(boxes) for boxes in group], [sample(NONE)] * 5)
        assert found == pytest.approx(expected)
        positive += any(0 < value < 1 for value in expected)
    assert positive > 50


def test_boxes_of_other_labels_do_not_agree() -> None:
    about = sample(NONE)
    text = "<think>x</think><answer>[{{'Label': '{}', 'Position': [0, 0, 9, 9], 'Confidence': 1.00}}]</answer>"
    labels = ("cat", " Cat", "dog")
    answers = [MultiCategoryDetectionTask().parse(text.format(label), about, FRAME) for label in labels]
    assert Consistency().scores(answers, [about] * 3) == [0.5, 0.5, 0.0]


def test_texts_agree_if_they_are_equal() -> None:
    about = sample("red")
    answers = [ClassificationTask().parse(f"<answer>{name}</answer>", about, FRAME) for name in ("red", "Red.", "blue")]
    assert Consistency().scores(answers, [about] * 3) == [0.5, 0.5, 0.0]


def test_records_that_ask_the_same_are_groups_of_their_own() -> None:
    """Two records may share the image and the query, and expect different answers."""
    first = sample("red")
    answers = [ClassificationTask().parse(f"<answer>{name}</answer>", first, FRAME) for name in ("red", "red", "blue")]
    other = replace(first, index=1, target="blue")
    assert Consistency().scores(answers, [first, first, other]) == [1.0, 1.0, None]
    records = [Record(one.image_id, one.query, one.target, one.size, {}) for one in (first, first, other)]
    assert Consistency().scores(answers, records) == [1.0, 1.0, None]


def test_one_object_given_twice_counts_as_two_answers() -> None:
    one = answer([("cat", (0, 0, 9, 9))])
    assert Consistency().scores([one, one, answer([])], [sample(NONE)] * 3) == [0.5, 0.5, 0.0]


def test_each_answer_is_matched_in_the_order_of_its_own_confidences() -> None:
    wide, narrow, true = (0.0, 0.0, 10.0, 10.0), (0.0, 0.0, 5.0, 10.0), (0.0, 0.0, 10.0, 10.0)
    unsure = Answer("", "", (Detection(narrow, "cat", 0.9), Detection(wide, "cat", 0.1)), True)
    single = Answer("", "", (Detection(true, "cat", 0.5),), True)
    assert Consistency().scores([unsure, single], [sample(NONE)] * 2) == [0.25, 0.5]
