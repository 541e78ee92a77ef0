"""Detection rewards: answers that broke the released rewards (defects D1, D2, D5, D6), and the published formulas."""

from __future__ import annotations

import itertools
import math
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.helpers.answers import (
    EXACT,
    FAR,
    FRAME,
    GOOD,
    GOOD_IOU,
    NONE,
    ONE,
    SURE,
    TWO,
    boxes,
    detection_scores,
    overlap_of,
    position,
    sample,
    tagged,
)
from vrft.rewards import (
    Accuracy,
    DetectionConfidence,
    DetectionDIoU,
    DetectionF1,
    DetectionGIoU,
    DetectionIoU,
    Format,
    PaperConfidence,
)
from vrft.tasks import DetectionTask, MultiCategoryDetectionTask
from vrft.training.grpo import group_advantages
from vrft.types import Detection, Sample, Target

MEDIOCRE, MEDIOCRE_IOU = [10, 20, 300, 287], 267 / 380
FOUR: Target = (*TWO, Detection((200, 10, 250, 60), "cat"), Detection((10, 300, 60, 350), "cat"))


@pytest.mark.parametrize(
    ("text", "target", "expected"),
    [
        pytest.param(
            tagged(boxes((EXACT, 1))), FOUR, (0.25, (11 * 5 / 17 + 4.25) / 16, 1), id="one-confident-box-of-four"
        ),
        pytest.param(tagged("No Objects", "I count 0"), ONE, (0, 0.25, 1), id="D1-zero-in-reasoning"),
        pytest.param(tagged("[]"), NONE, (1, 1, 1), id="D5-right-empty-list"),
        pytest.param(tagged("[]"), ONE, (0, 0.25, 1), id="wrong-empty-list"),
        pytest.param(tagged(boxes((GOOD, "true"))), ONE, (0, 0, 1), id="D6-confidence-boolean"),
        pytest.param(tagged(boxes((GOOD[:3], 0.9))), ONE, (0, 0, 1), id="D6-three-numbers"),
        pytest.param(tagged(boxes(([12, 25, 300, 1390], 0.9))), ONE, (0, 0, 1), id="D6-out-of-frame"),
        pytest.param(
            tagged("[{'bbox_2d': [12, 25, 300, 390]}]"), ONE, (GOOD_IOU, 15 / 16, 1), id="qwen-states-no-confidence"
        ),
        pytest.param(tagged("[{'bbox_2d': [12, 25, 300, 390], 'Confidence': 0.9}]"), ONE, (0, 0, 1), id="mixed-keys"),
        pytest.param(tagged("[{'Position': 'the cat's', 'Confidence': 0.9}]"), ONE, (0, 0, 1), id="apostrophe"),
        pytest.param(tagged("No Objects", tagged(SURE)), ONE, (0, 0.25, 0), id="box-inside-think"),
        pytest.param(tagged(f"{SURE}</answer><answer>No Objects"), ONE, (0, 0.25, 0), id="last-answer-is-wrong"),
        pytest.param(tagged(f"[]</answer><answer>{SURE}"), ONE, (GOOD_IOU, 15.99 / 16, 0), id="last-answer-is-right"),
    ],
)
def test_detection_rewards(text: str, target: Target, expected: tuple[float, float, float]) -> None:
    assert detection_scores(text, target) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("right", "wrong", "objects", "expected"),
    [
        pytest.param([1.0], [], 1, 1, id="truth"),
        pytest.param([0.5], [], 1, 15.75 / 16, id="unsure"),
        pytest.param([0.0], [], 1, 15 / 16, id="stated-to-be-wrong"),
        pytest.param([], [1.0], 1, 3 / 16, id="wrong-and-sure"),
        pytest.param([], [0.0], 1, 0.25, id="wrong-and-known-to-be"),
        pytest.param([], [], 1, 0.25, id="missed"),
        pytest.param([1.0], [1.0], 1, (11 * 5 / 6 + 4 * 2 / 3) / 16, id="one-too-many"),
        pytest.param([0.8], [0.3], 4, (11 * 5 / 18 + 4 + (0.96 - 0.09) / 4) / 16, id="some-of-four"),
        pytest.param([], [0.0], 0, 4 / 2 / 16, id="box-without-objects"),
        pytest.param([], [], 0, 1, id="no-objects"),
    ],
)
def test_confidence(right: list[float], wrong: list[float], objects: int, expected: float) -> None:
    found = boxes(*[(EXACT, c) for c in right], *[(FAR, c) for c in wrong])
    assert detection_scores(tagged(found), FOUR[:objects])[1] == pytest.approx(expected)


def test_surplus_boxes_never_beat_the_correct_answer() -> None:
    right = detection_scores(tagged(boxes((EXACT, 1))), ONE)[1]
    assert all(detection_scores(tagged(boxes((EXACT, 1), *[(FAR, 0)] * n)), ONE)[1] < right for n in (1, 5, 99))


@pytest.mark.parametrize("kind", [DetectionIoU, DetectionConfidence])
def test_threshold_is_an_option(kind: type[DetectionIoU | DetectionConfidence]) -> None:
    about = sample(ONE)
    answer = DetectionTask().parse(tagged(boxes((MEDIOCRE, 1))), about, FRAME)
    assert kind(threshold=0.7).score(answer, about) > kind(threshold=0.71).score(answer, about)


def test_D2_a_nan_confidence_leaves_its_group_finite() -> None:
    texts = [tagged(SURE), tagged(boxes((GOOD, "NaN")))]
    totals = torch.tensor([[sum(detection_scores(text, ONE)) for text in texts]])
    assert group_advantages(totals).isfinite().all()
    assert totals[0, 0] > totals[0, 1]


def test_D1_rewards_work_outside_the_main_thread() -> None:
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(detection_scores, tagged(boxes((EXACT, 1))), ONE).result() == (1, 1, 1)


PREDICTIONS = st.lists(st.tuples(position() | st.just(EXACT) | st.just(GOOD), st.floats(0, 1)), max_size=6)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(PREDICTIONS, st.sampled_from([NONE, ONE, TWO, FOUR]))
def test_rewards_of_valid_answers_are_between_0_and_1(
    predictions: list[tuple[list[int], float]], target: Target
) -> None:
    answer = DetectionTask().parse(tagged(boxes(*predictions)), sample(target), FRAME)
    assert answer.valid
    for reward in (DetectionIoU(), DetectionConfidence(), Format(), Accuracy()):
        score = reward.score(answer, sample(target))
        assert math.isfinite(score)
        assert 0 <= score <= 1


def random_answer(rng: random.Random, true: Target) -> list[tuple[list[int], float]]:
    """Draw boxes in the frame, near true ones and elsewhere, with different confidences."""
    found = []
    confidences = rng.sample(range(101), 8)
    for true_box in rng.sample(true, rng.randint(0, len(true))) * rng.choice([1, 1, 2]):
        x0, y0, x1, y1 = (round(2 * side) + rng.randint(-15, 15) for side in true_box.box)
        if 0 <= x0 < x1 <= 1000 and 0 <= y0 < y1 <= 1000:
            found.append([x0, y0, x1, y1])
    for _ in range(rng.randint(0, 2)):
        x0, y0 = rng.randrange(900), rng.randrange(900)
        found.append([x0, y0, rng.randint(x0 + 1, 1000), rng.randint(y0 + 1, 1000)])
    rng.shuffle(found)
    return [(box, confidences[i] / 100) for i, box in enumerate(found[:8])]


def released(found: list[tuple[list[int], float]], true: list[list[float]]) -> tuple[float, float]:
    """Return the released code's IoU reward and eq. 7-8's confidence reward of an answer without equal boxes."""
    matched: dict[int, float] = {}
    free = set(range(len(true)))
    for i in sorted(range(len(found)), key=lambda i: -found[i][1]):
        ious = {j: overlap_of(found[i][0], true[j])[0] for j in free}
        best = max(ious, key=ious.__getitem__, default=None)
        if best is not None and ious[best] > 0.5:
            matched[i] = ious[best]
            free.remove(best)
    confidence = [c if i in matched else 1 - c for i, (_, c) in enumerate(found)]
    slots = max(len(found), len(true))
    return sum(matched.values()) / slots, sum(confidence) / len(found) if found else 0.0


@pytest.mark.parametrize("seed", range(4))
def test_iou_and_paper_confidence_equal_the_published_formulas(seed: int) -> None:
    rng = random.Random(seed)
    matches = 0
    for _ in range(250):
        target = (ONE, TWO, FOUR)[rng.randrange(3)]
        found = random_answer(rng, target)
        about = sample(target)
        answer = DetectionTask().parse(tagged(boxes(*found)), about, FRAME)
        iou, confidence = released(found, [[2 * side for side in true.box] for true in target])
        assert DetectionIoU(matching="confidence").score(answer, about) == pytest.approx(iou, abs=1e-9)
        assert PaperConfidence().score(answer, about) == pytest.approx(confidence, abs=1e-9)
        matches += 0 < iou < 1
    assert matches > 100


@pytest.mark.parametrize(
    ("text", "target", "expected"),
    [
        pytest.param(tagged("No Objects"), NONE, 1, id="right-no-objects"),
        pytest.param(tagged("No Objects"), ONE, 0, id="wrong-no-objects"),
        pytest.param(tagged(boxes((FAR, 0))), ONE, 1, id="wrong-without-confidence"),
        pytest.param(tagged(boxes((EXACT, 1))), FOUR, 1, id="missed-boxes-cost-nothing"),
        pytest.param(tagged(boxes((EXACT, 1), (FAR, 0.2))), ONE, 0.9, id="mean-over-predictions"),
        pytest.param(tagged(boxes((FAR, 0.2))), NONE, 0.8, id="box-without-objects"),
        pytest.param(tagged('[{"bbox_2d": [10, 20, 300, 400]}]'), ONE, 0, id="no-confidence"),
        pytest.param("unreadable", ONE, 0, id="unreadable"),
    ],
)
def test_paper_confidence_differs_from_ours(text: str, target: Target, expected: float) -> None:
    about = sample(target)
    assert PaperConfidence().score(DetectionTask().parse(text, about, FRAME), about) == pytest.approx(expected)


@pytest.mark.parametrize("kind", [DetectionGIoU, DetectionDIoU])
def test_giou_and_diou_rewards_are_the_best_sum_over_all_matchings(kind: type[DetectionGIoU]) -> None:
    rng, diou = random.Random(0), kind is DetectionDIoU
    for _ in range(150):
        target = (ONE, TWO, FOUR)[rng.randrange(3)]
        found = random_answer(rng, target)[:5]
        about = sample(target)
        answer = DetectionTask().parse(tagged(boxes(*found)), about, FRAME)
        table = [[shifted(a, [2 * side for side in b.box], diou) for b in target] for a, _ in found]
        short, long = sorted((len(found), len(target)))
        if len(found) > len(target):
            table = [list(column) for column in zip(*table, strict=True)]
        best = max(
            sum(table[i][j] for i, j in enumerate(order)) for order in itertools.permutations(range(long), short)
        )
        slots = max(len(found), len(target))
        factor = (len(target) + 1) / (slots + 1)
        assert kind().score(answer, about) == pytest.approx(best / slots * factor, abs=1e-9)


def shifted(a: list[int], b: list[float], diou: bool) -> float:
    """Return (1 + GIoU) / 2 or (1 + DIoU) / 2."""
    iou, giou = overlap_of(a, b)
    apart = math.hypot((a[0] + a[2] - b[0] - b[2]) / 2, (a[1] + a[3] - b[1] - b[3]) / 2)
    diagonal = math.hypot(max(a[2], b[2]) - min(a[0], b[0]), max(a[3], b[3]) - min(a[1], b[1]))
    return (1 + (iou - (apart / diagonal) ** 2 if diou else giou)) / 2


@pytest.mark.parametrize("kind", [DetectionGIoU, DetectionDIoU])
def test_a_box_that_misses_earns_more_if_it_is_nearer(kind: type[DetectionGIoU]) -> None:
    about = sample(ONE)
    rows = [[310 + step, 20, 600 + step, 400] for step in (400, 200, 100, 0)]
    answers = [DetectionTask().parse(tagged(boxes((row, 1))), about, FRAME) for row in rows]
    scores = [kind().score(answer, about) for answer in answers]
    assert scores == sorted({*scores})
    assert scores[0] > 0
    assert scores[-1] < 0.5
    assert all(DetectionIoU().score(answer, about) == 0 for answer in answers)


@pytest.mark.parametrize(
    ("matching", "pairs"),
    [
        # the confident prediction has IoU 0.9 with the first true box and 60 / 90 with the second; the other one has
        # 0.8 with the first and 60 / 125, below the threshold, with the second
        pytest.param("confidence", [0.9], id="by-confidence-the-confident-box-takes-the-best"),
        pytest.param("optimal", [60 / 90, 0.8], id="optimal-prefers-two-pairs"),
    ],
)
def test_matching_of_detection_rewards(matching: str, pairs: list[float]) -> None:
    about = sample((Detection((0, 0, 50, 500), "cat"), Detection((0, 0, 30, 500), "cat")))
    text = tagged(boxes(([0, 0, 90, 1000], 0.9), ([0, 0, 125, 1000], 0.8)))
    answer = DetectionTask().parse(text, about, FRAME)
    assert DetectionIoU(matching=matching).score(answer, about) == pytest.approx(sum(pairs) / 2)
    assert DetectionF1(matching=matching).score(answer, about) == pytest.approx(len(pairs) / 2)


@pytest.mark.parametrize(
    ("found", "true", "recall_weight", "expected"),
    [
        pytest.param([EXACT], ONE, 1, 1, id="all-right"),
        pytest.param([EXACT], FOUR, 1, 2 * 1 * 0.25 / 1.25, id="one-of-four"),
        pytest.param([EXACT], FOUR, 2, 5 * 1 * 0.25 / (4 * 1 + 0.25), id="one-of-four-recall-counts-double"),
        pytest.param([EXACT], FOUR, 0, 1, id="precision-alone"),
        pytest.param([EXACT, FAR], ONE, 1, 2 * 0.5 * 1 / 1.5, id="one-too-many"),
        pytest.param([EXACT, FAR], ONE, 2, 5 * 0.5 * 1 / (4 * 0.5 + 1), id="one-too-many-recall-counts-double"),
        pytest.param([EXACT, FAR], ONE, 0.5, 1.25 * 0.5 * 1 / (0.25 * 0.5 + 1), id="one-too-many-precision-counts"),
        pytest.param([EXACT, EXACT], ONE, 1, 2 * 0.5 * 1 / 1.5, id="duplicate"),
        pytest.param([FAR], ONE, 1, 0, id="wrong"),
        pytest.param([], ONE, 1, 0, id="nothing-found"),
        pytest.param([FAR], NONE, 1, 0, id="nothing-to-find"),
        pytest.param([], NONE, 1, 1, id="right-no-objects"),
    ],
)
def test_f1(found: list[list[int]], true: Target, recall_weight: float, expected: float) -> None:
    about = sample(true)
    answer = DetectionTask().parse(tagged(boxes(*[(box, 1) for box in found])), about, FRAME)
    assert DetectionF1(recall_weight=recall_weight).score(answer, about) == pytest.approx(expected)


def labelled(*items: tuple[str, list[int], float]) -> str:
    texts = [f"{{'Label': '{label}', 'Position': {box}, 'Confidence': {c}}}" for label, box, c in items]
    return tagged(f"[{', '.join(texts)}]")


CAT_AND_DOG: Target = (*ONE, Detection((300, 300, 400, 400), "Dog"))
THERE = [600, 600, 800, 800]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(labelled(("cat", EXACT, 1), ("dog", THERE, 1)), (1, 1, 1), id="both"),
        pytest.param(labelled(("dog", EXACT, 1), ("cat", THERE, 1)), (0, 3 / 16, 0), id="labels-swapped"),
        pytest.param(
            labelled(("cat", EXACT, 0.9), ("cat", THERE, 0.6)), (0.5, (5.5 + 4.315) / 16, 0.5), id="one-label-wrong"
        ),
        pytest.param(
            labelled(("dog", EXACT, 0.9), ("cat", EXACT, 0.8)),
            (0.5, (5.5 + 4.075) / 16, 0.5),
            id="the-more-confident-has-another-label",
        ),
        pytest.param(labelled((" CAT.", EXACT, 1)), (0.5, (11 * 5 / 9 + 4.5) / 16, 2 / 3), id="label-in-other-case"),
        pytest.param(labelled(("horse", EXACT, 0)), (0, 0.25, 0), id="label-outside-the-query"),
        pytest.param(labelled(("", EXACT, 0)), (0, 0.25, 0), id="empty-label"),
        pytest.param(tagged(boxes((EXACT, 1))), (0, 0, 0), id="no-label-is-unreadable"),
        pytest.param(tagged("No Objects"), (0, 0.25, 0), id="no-objects"),
    ],
)
def test_boxes_are_matched_within_their_label(text: str, expected: tuple[float, float, float]) -> None:
    about = Sample(0, (Image.new("1", (500, 500)),), 0, "cat, Dog", CAT_AND_DOG)
    answer = MultiCategoryDetectionTask().parse(text, about, FRAME)
    scores = [reward.score(answer, about) for reward in (DetectionIoU(), DetectionConfidence(), DetectionF1())]
    assert scores == pytest.approx(expected)


@pytest.mark.parametrize("kind", [DetectionGIoU, DetectionDIoU])
def test_overlaps_with_another_label_do_not_count(kind: type[DetectionGIoU]) -> None:
    about = Sample(0, (Image.new("1", (500, 500)),), 0, "cat, Dog", CAT_AND_DOG)
    wrong = MultiCategoryDetectionTask().parse(labelled(("horse", EXACT, 1), ("horse", THERE, 1)), about, FRAME)
    right = MultiCategoryDetectionTask().parse(labelled(("dog", THERE, 1), ("cat", EXACT, 1)), about, FRAME)
    assert (kind().score(wrong, about), kind().score(right, about)) == (0, 1)
