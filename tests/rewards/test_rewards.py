"""Rewards on the answers that broke the released ones (defects D1 to D7 of Visual-RFT's code), and as metrics.

The released functions were run on most of these answers; what they gave is in the comments of the tables.
"""

import itertools
import math
import pickle
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vrft.rewards import (
    Accuracy,
    CentreDistance,
    CountError,
    DetectionConfidence,
    DetectionDIoU,
    DetectionF1,
    DetectionGIoU,
    DetectionIoU,
    Format,
    FunctionReward,
    GroundingGIoU,
    GroundingIoU,
    Length,
    PaperConfidence,
    PaperGroundingGIoU,
    PointInBox,
    ReasoningPresent,
    Repetition,
    Reward,
    RewardModel,
)
from vrft.tasks import ClassificationTask, CountingTask, DetectionTask, GroundingTask, MultiCategoryDetectionTask
from vrft.training.grpo import group_advantages
from vrft.types import Answer, Detection, Frame, Question, Sample, Target

FRAME = Frame(1000, 1000)
EXACT = [10, 20, 300, 400]
GOOD, GOOD_IOU = [12, 25, 300, 390], 288 * 365 / (290 * 380)
MEDIOCRE, MEDIOCRE_IOU = [10, 20, 300, 287], 267 / 380
NEAR = [13, 25, 300, 390]
FAR = [700, 21, 900, 990]
ONE: Target = (Detection((5, 10, 150, 200), "cat"),)
TWO: Target = (*ONE, Detection((300, 300, 400, 400), "cat"))
FOUR: Target = (*TWO, Detection((200, 10, 250, 60), "cat"), Detection((10, 300, 60, 350), "cat"))
NONE: Target = ()


def sample(target: Target) -> Sample:
    """An image of 500 x 500: what is true in pixels is twice that in the frame."""
    return Sample(0, Image.new("1", (500, 500)), 0, "cat", target)


def boxes(*items: tuple[list[int], object]) -> str:
    return "[" + ", ".join(f"{{'Position': {position}, 'Confidence': {c}}}" for position, c in items) + "]"


def tagged(answer: str, reasoning: str = "hm") -> str:
    return f"<think>{reasoning}</think><answer>{answer}</answer>"


SURE = boxes((GOOD, 0.9))


def detection_scores(text: str, target: Target) -> tuple[float, float, float]:
    """Scores of IoU, confidence and format."""
    about = sample(target)
    answer = DetectionTask().parse(text, about, FRAME)
    return (
        DetectionIoU().score(answer, about),
        DetectionConfidence().score(answer, about),
        Format().score(answer, about),
    )


@pytest.mark.parametrize(
    ("text", "target", "expected"),
    [
        pytest.param(tagged(boxes((EXACT, 1))), FOUR, (0.25, 0.25, 1), id="one-sure-box-of-four"),
        pytest.param(tagged("No Objects", "I count 0"), ONE, (0, 0, 1), id="D1-zero-in-reasoning"),
        pytest.param(tagged("[]"), NONE, (1, 1, 1), id="D5-right-empty-list"),
        pytest.param(tagged("[]"), ONE, (0, 0, 1), id="wrong-empty-list"),
        pytest.param(tagged(boxes((GOOD, "true"))), ONE, (0, 0, 1), id="D6-confidence-boolean"),
        pytest.param(tagged(boxes((GOOD[:3], 0.9))), ONE, (0, 0, 1), id="D6-three-numbers"),
        pytest.param(tagged(boxes(([12, 25, 300, 1390], 0.9))), ONE, (0, 0, 1), id="D6-out-of-frame"),
        pytest.param(
            tagged("[{'bbox_2d': [12, 25, 300, 390]}]"), ONE, (GOOD_IOU, 0, 1), id="qwen-states-no-confidence"
        ),
        pytest.param(tagged("[{'bbox_2d': [12, 25, 300, 390], 'Confidence': 0.9}]"), ONE, (0, 0, 1), id="mixed-keys"),
        pytest.param(tagged("[{'Position': 'the cat's', 'Confidence': 0.9}]"), ONE, (0, 0, 1), id="apostrophe"),
        pytest.param(tagged("No Objects", tagged(SURE)), ONE, (0, 0, 0), id="box-inside-think"),
        pytest.param(tagged(f"{SURE}</answer><answer>No Objects"), ONE, (0, 0, 0), id="last-answer-is-wrong"),
        pytest.param(tagged(f"[]</answer><answer>{SURE}"), ONE, (GOOD_IOU, 0.9, 0), id="last-answer-is-right"),
    ],
)
def test_detection_rewards(text: str, target: Target, expected: tuple[float, float, float]) -> None:
    assert detection_scores(text, target) == pytest.approx(expected, abs=1e-12)


TABLE_GOOD = [12, 25, 300, 390]  # the good box of the tables, for a true box [10, 20, 300, 400]


@pytest.mark.parametrize(
    ("text", "target", "expected"),
    [
        # what follows the arrow in the comments: IoU, confidence and format of the released functions
        pytest.param(tagged(boxes((EXACT, 1))), ONE, (1, 1, 1), id="exact-box"),  # -> 1, 1, 1
        pytest.param(tagged(boxes((TABLE_GOOD, 0.9))), ONE, (0.954, 0.9, 1), id="good-box"),  # -> .954, .9, 1
        pytest.param(tagged(boxes((TABLE_GOOD, 0.9))), TWO, (0.477, 0.45, 1), id="good-box-of-two"),  # -> .477, .9, 1
        pytest.param(  # -> 1, 1, 1
            tagged(boxes(([700, 20, 900, 990], 0.5))), ONE, (0, 0.25, 1), id="wrong-box-with-the-same-y1"
        ),
        pytest.param(  # -> 0, .5, 1
            tagged(boxes(([700, 21, 900, 990], 0.5))), ONE, (0, 0.25, 1), id="wrong-box"
        ),
        pytest.param(  # -> 0, 1, 1
            tagged(boxes(([700, 21, 900, 990], -10))), ONE, (0, 0, 1), id="wrong-box-confidence-minus-10"
        ),
        pytest.param(  # -> .477, 1, 1
            tagged(boxes((TABLE_GOOD, 100), (FAR, 0.9))), ONE, (0, 0, 1), id="confidence-100-and-a-wrong-box"
        ),
        pytest.param(tagged(boxes((TABLE_GOOD, "NaN"))), ONE, (0, 0, 1), id="confidence-nan"),  # -> .954, NaN, 1
        pytest.param(
            tagged(boxes((TABLE_GOOD, "Infinity"))), ONE, (0, 0, 1), id="confidence-infinity"
        ),  # -> .954, 1, 1
        pytest.param(tagged(boxes((TABLE_GOOD, "'0.9'"))), ONE, (0, 0, 1), id="confidence-a-string"),  # -> 0, 0, 1
        pytest.param(  # -> 0, 0, 1
            tagged("[{'Position': [12, 25, 300, 390]}]"), ONE, (0, 0, 1), id="confidence-missing"
        ),
        pytest.param(tagged("No Objects"), NONE, (1, 1, 1), id="right-no-objects"),  # -> 0, 0, 1
        pytest.param(  # -> 0, 0, 1
            tagged(boxes((TABLE_GOOD, 0.9))), NONE, (0, 0.05, 1), id="box-where-there-is-nothing"
        ),
        pytest.param(tagged("No Objects"), ONE, (0, 0, 1), id="wrong-no-objects"),  # -> 0, 0, 1
        pytest.param(boxes((TABLE_GOOD, 0.9)), ONE, (0, 0, 0), id="bare-list"),  # -> .954, .9, 0
        pytest.param(  # -> 0, 0, 1
            f"<think>hm</think>\n<answer>\n{SURE}\n</answer>", ONE, (0.954, 0.9, 1), id="answer-on-its-own-line"
        ),
        pytest.param(  # -> 0, 0, 1
            tagged(f"```json\n{SURE}\n```"), ONE, (0.954, 0.9, 1), id="json-code-fence"
        ),
        pytest.param(  # -> 0, 0, 1
            tagged('[{"bbox_2d": [12, 25, 300, 390], "confidence": 0.9}]'), ONE, (0.954, 0.9, 1), id="bbox-2d-keys"
        ),
        pytest.param(  # -> 0, 0, 1
            tagged("[{'Label': \"cat's\", 'Position': [12, 25, 300, 390], 'Confidence': 0.9}]"),
            ONE,
            (0.954, 0.9, 1),
            id="apostrophe-in-a-string",
        ),
        pytest.param(  # -> 0, .1, 1
            tagged(boxes(([300, 390, 12, 25], 0.9))), ONE, (0, 0, 1), id="reversed-corners"
        ),
        pytest.param(  # -> .954, .9, 1
            tagged(boxes((TABLE_GOOD, 0.9), (TABLE_GOOD, 0.9))), ONE, (0.477, 0.475, 1), id="exact-duplicate"
        ),
        pytest.param(  # -> .477, .9, 1
            tagged(boxes((TABLE_GOOD, 0.9), ([13, 25, 300, 390], 0.9))), ONE, (0.477, 0.475, 1), id="near-duplicate"
        ),
        pytest.param(  # -> 0, .1, 1
            tagged(boxes(([10, 20, 155, 400], 0.9))), ONE, (0, 0.05, 1), id="iou-exactly-a-half"
        ),
        pytest.param(f"<think>hm</think><answer>{SURE[:-10]}", ONE, (0, 0, 0), id="truncated-list"),  # -> 0, 0, 0
        pytest.param(  # -> .954, .9, 1
            f"<think><answer>{SURE}</answer></think><answer>No Objects</answer>", ONE, (0, 0, 0), id="box-inside-think"
        ),
        pytest.param(  # -> .954, .9, 1
            f"<think>hm</think><answer>{SURE}</answer><answer>{SURE}</answer>",
            ONE,
            (0.954, 0.9, 0),
            id="two-answer-blocks",
        ),
        pytest.param(  # -> .351, .55, 1
            tagged(boxes(([10, 20, 300, 287], 0.9), (EXACT, 0.8))), ONE, (0.351, 0.5, 1), id="mediocre-box-first"
        ),
    ],
)
def test_the_answers_that_the_released_detection_rewards_were_run_on(
    text: str, target: Target, expected: tuple[float, float, float]
) -> None:
    assert detection_scores(text, target) == pytest.approx(expected, abs=5e-4)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # the released accuracy takes math-verify's word, else 1 + GIoU of the first four numbers it finds
        pytest.param(tagged("(10,20),(300,400)"), (1, 1, 2, 1, 1), id="exact"),  # -> 2.0
        pytest.param(tagged("(12,25),(300,390)"), (0.954, 0.977, 1.954, 0.998, 1), id="near"),  # -> about 1.9
        pytest.param(tagged("(700,600),(990,990)"), (0, 0.117, 0.235, 0.360, 1), id="disjoint"),
        pytest.param(tagged("(300,400),(10,20)"), (0, 0, 0, 0, 1), id="D7-reversed-corners"),  # -> 2.0
        pytest.param(tagged("(0,0),(1000,1000)"), (0.110, 0.555, 1.110, 0.681, 1), id="whole-image"),
        pytest.param(tagged("(0,0),(99999,99999)"), (0, 0, 0, 0, 1), id="far-beyond-the-frame"),  # -> 1.0
        pytest.param(tagged("(10,20),(10,20)"), (0, 0, 0, 0, 1), id="degenerate"),  # -> .33
        pytest.param(tagged("(10.0,20.0),(300.0,400.0)"), (1, 1, 2, 1, 1), id="decimals"),  # -> 0
        pytest.param(tagged("[10, 20, 300, 400]"), (0, 0, 0, 0, 1), id="brackets"),  # -> 0
        pytest.param(tagged('[{"bbox_2d": [10, 20, 300, 400]}]'), (1, 1, 2, 1, 1), id="bbox-2d"),
        pytest.param(tagged("(10,20),(300,400),(10,20),(300,400)"), (0, 0, 0, 0, 1), id="D7-two-boxes"),  # -> 1.33
        pytest.param(tagged("No Objects"), (0, 0, 0, 0, 1), id="no-box"),  # -> 0
        pytest.param("(10,20),(300,400)", (0, 0, 0, 0, 0), id="no-tags"),  # -> 2.0
        pytest.param("<think>a</think>\n<answer>(10,20),(300,400)</answer>", (1, 1, 2, 1, 1), id="own-line"),
    ],
)
def test_the_answers_that_the_released_grounding_reward_was_run_on(text: str, expected: tuple[float, ...]) -> None:
    about = sample(ONE)
    answer = GroundingTask().parse(text, about, FRAME)
    rewards = (GroundingIoU(), GroundingGIoU(), PaperGroundingGIoU(), CentreDistance(), Format())
    for reward, value in zip(rewards, expected, strict=True):
        assert reward.score(answer, about) == pytest.approx(value, abs=6e-4)


def test_ten_classes_at_once_are_no_answer() -> None:
    names = [f"class {i}" for i in range(10)]
    for name in names:
        about = sample(name)
        assert Accuracy().score(ClassificationTask().parse(tagged(", ".join(names)), about, FRAME), about) == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("<think>a</think><answer>b</answer>", 1, id="as-asked"),
        pytest.param("<think>\na\n</think>\n\n<answer>\nb\n</answer>\n", 1, id="white-space-around"),
        pytest.param("<think></think><answer></answer>", 1, id="says-nothing"),
        pytest.param("<think>a</think><think>c</think><answer>b</answer>", 0, id="two-reasonings"),
        pytest.param("<think>a</think><answer>b</answer><answer>c</answer>", 0, id="two-answers"),
        pytest.param("<think>a<think>c</think><answer>b</answer>", 0, id="opened-twice"),
        pytest.param("<think>a</think><answer>b</answer></answer>", 0, id="closed-twice"),
        pytest.param("<think>a <answer>b</answer></think>", 0, id="answer-inside"),
        pytest.param("<answer>b</answer><think>a</think>", 0, id="wrong-order"),
        pytest.param("Sure! <think>a</think><answer>b</answer>", 0, id="text-before"),
        pytest.param("<think>a</think> So: <answer>b</answer>", 0, id="text-between"),
        pytest.param("<think>a</think><answer>b</answer> Done.", 0, id="text-after"),
        pytest.param("<think>a</think><answer>b", 0, id="not-closed"),
        pytest.param("<think>a</think>", 0, id="no-answer"),
        pytest.param("<THINK>a</THINK><ANSWER>b</ANSWER>", 0, id="upper-case"),
        pytest.param("", 0, id="empty"),
    ],
)
def test_format(text: str, expected: float) -> None:
    about = sample("b")
    assert Format().score(ClassificationTask().parse(text, about, FRAME), about) == expected


@pytest.mark.parametrize("count", [1, 2, 10, 100])
def test_wrong_boxes_without_confidence_earn_exactly_half_however_many(count: int) -> None:
    assert detection_scores(tagged(boxes(*[(FAR, 0)] * count)), ONE) == (0, 0.5, 1)


def test_surplus_boxes_never_beat_the_right_answer_alone() -> None:
    right = detection_scores(tagged(boxes((EXACT, 1))), ONE)[1]
    assert all(detection_scores(tagged(boxes((EXACT, 1), *[(FAR, 0)] * n)), ONE)[1] < right for n in (1, 5, 99))


@pytest.mark.parametrize("kind", [DetectionIoU, DetectionConfidence])
def test_threshold_is_an_option(kind: type[DetectionIoU | DetectionConfidence]) -> None:
    about = sample(ONE)
    answer = DetectionTask().parse(tagged(boxes((MEDIOCRE, 1))), about, FRAME)
    assert kind(threshold=0.7).score(answer, about) > 0
    assert kind(threshold=0.71).score(answer, about) == 0


def test_D2_a_nan_confidence_leaves_its_group_finite() -> None:
    texts = [tagged(SURE), tagged(boxes((GOOD, "NaN")))]
    totals = torch.tensor([[sum(detection_scores(text, ONE)) for text in texts]])
    assert group_advantages(totals).isfinite().all()
    assert totals[0, 0] > totals[0, 1]


def test_D1_rewards_work_outside_the_main_thread() -> None:
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(detection_scores, tagged(boxes((EXACT, 1))), ONE).result() == (1, 1, 1)


@pytest.mark.parametrize(
    ("text", "target", "expected"),
    [
        pytest.param(tagged("Boeing 717"), "Boeing 717", 1, id="same"),
        pytest.param(tagged("boeing_737-200."), "Boeing 737-200", 1, id="case-separators-full-stop"),
        pytest.param(tagged("737 200"), "737-200", 1, id="space-for-hyphen"),
        pytest.param("<think>hm</think>\n<answer>\nrose\n</answer>", "rose", 1, id="D3-own-line"),
        pytest.param("<answer>rose</answer>", "rose", 1, id="no-think-is-a-matter-of-format"),
        pytest.param(tagged(""), "rose", 0, id="D4-empty"),
        pytest.param(tagged(" \n"), "rose", 0, id="D4-white-space"),
        pytest.param(tagged("7"), "Boeing 717", 0, id="D4-part-of-the-class"),
        pytest.param(tagged("-"), "737-200", 0, id="D4-hyphen"),
        pytest.param(tagged("Boeing 737 200"), "737-200", 0, id="D4-more-than-the-class"),
        pytest.param(tagged("rose, tulip, lily"), "rose", 0, id="D4-list-of-classes"),
        pytest.param(tagged("rose"), "pink primrose", 0, id="D4-class-inside-another"),
        pytest.param(tagged("pink primrose"), "rose", 0, id="D4-other-class-around-it"),
        pytest.param("<think>not a rose</think><answer>\ntulip\n</answer>", "rose", 0, id="D3-named-in-reasoning-only"),
        pytest.param("It is a rose", "rose", 0, id="named-without-tags"),
        pytest.param(tagged("Boeing 560"), "Cessna 560", 0, id="D1-same-number"),
    ],
)
def test_accuracy(text: str, target: str, expected: float) -> None:
    about = sample(target)
    assert Accuracy().score(ClassificationTask().parse(text, about, FRAME), about) == expected


def position() -> st.SearchStrategy[list[int]]:
    sides = st.lists(st.integers(0, 1000), min_size=2, max_size=2, unique=True).map(sorted)
    return st.tuples(sides, sides).map(lambda xy: [xy[0][0], xy[1][0], xy[0][1], xy[1][1]])


PREDICTIONS = st.lists(st.tuples(position() | st.just(EXACT) | st.just(GOOD), st.floats(0, 1)), max_size=6)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(PREDICTIONS, st.sampled_from([NONE, ONE, TWO, FOUR]))
def test_rewards_of_readable_answers_lie_between_0_and_1(
    predictions: list[tuple[list[int], float]], target: Target
) -> None:
    answer = DetectionTask().parse(tagged(boxes(*predictions)), sample(target), FRAME)
    assert answer.valid
    for reward in (DetectionIoU(), DetectionConfidence(), Format(), Accuracy()):
        score = reward.score(answer, sample(target))
        assert math.isfinite(score)
        assert 0 <= score <= 1


def random_answer(rng: random.Random, true: Target) -> list[tuple[list[int], float]]:
    """Boxes near true ones and elsewhere, with different confidences; boxes are in the frame."""
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


def overlap_of(a: list[float], b: list[float]) -> tuple[float, float]:
    """IoU and GIoU, written out."""
    wide = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    high = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - wide * high
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return wide * high / union, wide * high / union - (hull - union) / hull


def released(found: list[tuple[list[int], float]], true: list[list[float]]) -> tuple[float, float]:
    """The released code's IoU reward and eq. 7-8's confidence reward of an answer whose boxes all differ."""
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
def test_iou_and_paper_confidence_are_the_published_formulas(seed: int) -> None:
    rng = random.Random(seed)
    matches = 0
    for _ in range(250):
        target = (ONE, TWO, FOUR)[rng.randrange(3)]
        found = random_answer(rng, target)
        about = sample(target)
        answer = DetectionTask().parse(tagged(boxes(*found)), about, FRAME)
        iou, confidence = released(found, [[2 * side for side in true.box] for true in target])
        assert DetectionIoU().score(answer, about) == pytest.approx(iou, abs=1e-9)
        assert PaperConfidence().score(answer, about) == pytest.approx(confidence, abs=1e-9)
        matches += 0 < iou < 1
    assert matches > 100


@pytest.mark.parametrize("seed", range(4))
def test_paper_grounding_reward_is_one_and_the_giou(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(250):
        x0, y0, u0, v0 = (rng.randrange(999) for _ in range(4))
        found = [x0, y0, rng.randint(x0 + 1, 1000), rng.randint(y0 + 1, 1000)]
        true = [u0, v0, rng.randint(u0 + 1, 1000), rng.randint(v0 + 1, 1000)]
        about = sample((Detection(tuple(side / 2 for side in true), "cat"),))
        answer = GroundingTask().parse(tagged(f"({found[0]},{found[1]}),({found[2]},{found[3]})"), about, FRAME)
        iou, giou = overlap_of(found, true)
        assert PaperGroundingGIoU().score(answer, about) == pytest.approx(1 + giou, abs=1e-9)
        assert GroundingGIoU().score(answer, about) == pytest.approx((1 + giou) / 2, abs=1e-9)
        assert GroundingIoU().score(answer, about) == pytest.approx(iou, abs=1e-9)
        assert PaperGroundingGIoU().bounded_scores([answer], [about]) == [pytest.approx(1 + giou, abs=1e-9)]


@pytest.mark.parametrize(
    ("text", "target", "expected"),
    [
        pytest.param(tagged("No Objects"), NONE, 1, id="right-no-objects"),
        pytest.param(tagged("No Objects"), ONE, 0, id="wrong-no-objects"),
        pytest.param(tagged(boxes((FAR, 0))), ONE, 1, id="wrong-and-known-to-be"),
        pytest.param(tagged(boxes((EXACT, 1))), FOUR, 1, id="missed-ones-are-forgiven"),
        pytest.param(tagged(boxes((EXACT, 1), (FAR, 0.2))), ONE, 0.9, id="mean-over-predictions"),
        pytest.param(tagged(boxes((FAR, 0.2))), NONE, 0.8, id="where-there-is-nothing"),
        pytest.param(tagged('[{"bbox_2d": [10, 20, 300, 400]}]'), ONE, 0, id="states-no-confidence"),
        pytest.param("unreadable", ONE, 0, id="unreadable"),
    ],
)
def test_paper_confidence_where_it_differs_from_ours(text: str, target: Target, expected: float) -> None:
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
        assert kind().score(answer, about) == pytest.approx(best / max(len(found), len(target)), abs=1e-9)


def shifted(a: list[int], b: list[float], diou: bool) -> float:
    """(1 + GIoU) / 2 or (1 + DIoU) / 2."""
    iou, giou = overlap_of(a, b)
    apart = math.hypot((a[0] + a[2] - b[0] - b[2]) / 2, (a[1] + a[3] - b[1] - b[3]) / 2)
    diagonal = math.hypot(max(a[2], b[2]) - min(a[0], b[0]), max(a[3], b[3]) - min(a[1], b[1]))
    return (1 + (iou - (apart / diagonal) ** 2 if diou else giou)) / 2


@pytest.mark.parametrize("kind", [DetectionGIoU, DetectionDIoU])
def test_a_box_that_misses_earns_more_the_nearer_it_is(kind: type[DetectionGIoU]) -> None:
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
        # the sure prediction has IoU 0.9 with the first true box and 60 / 90 with the second; the other one has 0.8
        # with the first and 60 / 125 with the second, which is no match
        pytest.param("confidence", [0.9], id="by-confidence-the-sure-one-takes-the-best"),
        pytest.param("optimal", [60 / 90, 0.8], id="optimal-gives-it-up-for-two"),
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
        pytest.param(labelled(("dog", EXACT, 1), ("cat", THERE, 1)), (0, 0, 0), id="labels-swapped"),
        pytest.param(labelled(("cat", EXACT, 0.9), ("cat", THERE, 0.6)), (0.5, 0.55, 0.5), id="one-label-wrong"),
        pytest.param(
            labelled(("dog", EXACT, 0.9), ("cat", EXACT, 0.8)), (0.5, 0.425, 0.5), id="the-surer-has-another-label"
        ),
        pytest.param(labelled((" CAT.", EXACT, 1)), (0.5, 0.5, 2 / 3), id="other-writing-of-a-label"),
        pytest.param(labelled(("horse", EXACT, 0)), (0, 0.25, 0), id="label-that-was-not-asked-for"),
        pytest.param(labelled(("", EXACT, 0)), (0, 0.25, 0), id="empty-label"),
        pytest.param(tagged(boxes((EXACT, 1))), (0, 0, 0), id="no-label-is-unreadable"),
        pytest.param(tagged("No Objects"), (0, 0, 0), id="no-objects"),
    ],
)
def test_boxes_are_matched_within_their_label(text: str, expected: tuple[float, float, float]) -> None:
    about = Sample(0, Image.new("1", (500, 500)), 0, "cat, Dog", CAT_AND_DOG)
    answer = MultiCategoryDetectionTask().parse(text, about, FRAME)
    scores = [reward.score(answer, about) for reward in (DetectionIoU(), DetectionConfidence(), DetectionF1())]
    assert scores == pytest.approx(expected)


@pytest.mark.parametrize("kind", [DetectionGIoU, DetectionDIoU])
def test_overlaps_with_another_label_count_for_nothing(kind: type[DetectionGIoU]) -> None:
    about = Sample(0, Image.new("1", (500, 500)), 0, "cat, Dog", CAT_AND_DOG)
    wrong = MultiCategoryDetectionTask().parse(labelled(("horse", EXACT, 1), ("horse", THERE, 1)), about, FRAME)
    right = MultiCategoryDetectionTask().parse(labelled(("dog", THERE, 1), ("cat", EXACT, 1)), about, FRAME)
    assert (kind().score(wrong, about), kind().score(right, about)) == (0, 1)


@pytest.mark.parametrize(
    ("box", "inside"),
    [
        pytest.param("(10,20),(300,400)", 1, id="the-box"),
        pytest.param("(290,390),(310,410)", 1, id="centre-on-the-corner"),
        pytest.param("(290,390),(312,410)", 0, id="centre-just-outside"),
        pytest.param("(0,0),(500,700)", 1, id="larger-box-around"),
        pytest.param("(600,20),(900,400)", 0, id="beside-it"),
    ],
)
def test_point_in_box(box: str, inside: float) -> None:
    about = sample(ONE)
    assert PointInBox().score(GroundingTask().parse(tagged(box), about, FRAME), about) == inside


@pytest.mark.parametrize("kind", [GroundingIoU, GroundingGIoU, PaperGroundingGIoU, PointInBox, CentreDistance])
def test_grounding_rewards_of_what_is_no_box_are_0(kind: type[Reward]) -> None:
    two = (*ONE, *ONE)
    assert kind().score(Answer("", "", None, True), sample(ONE)) == 0
    assert kind().score(Answer("", "", "cat", True), sample(ONE)) == 0
    assert kind().score(Answer("", "", two, True), sample(ONE)) == 0
    assert kind().score(Answer("", "", (), True), sample(ONE)) == 0


def test_centre_distance_is_in_diagonals_of_the_image() -> None:
    about = Sample(0, Image.new("1", (30, 40)), 0, "", (Detection((0, 0, 10, 10), ""),))
    answer = Answer("", "", (Detection((20, 30, 30, 40), ""),), True)
    assert CentreDistance().score(answer, about) == pytest.approx(1 - math.hypot(20, 30) / 50)


@pytest.mark.parametrize(
    ("text", "target", "expected"),
    [
        pytest.param("puma", "Mountain lion", 1, id="alias"),
        pytest.param("MOUNTAIN_LION", "Mountain lion", 1, id="the-name-itself"),
        pytest.param("cougar.", "Mountain lion", 1, id="alias-in-other-writing"),
        pytest.param("Mountain lion", "puma", 0, id="aliases-go-one-way"),
        pytest.param("puma, cougar", "Mountain lion", 0, id="two-aliases-at-once"),
        pytest.param("puma", "cat", 0, id="alias-of-another-class"),
        pytest.param("", "Mountain lion", 0, id="empty"),
    ],
)
def test_aliases(text: str, target: str, expected: float) -> None:
    about = sample(target)
    reward = Accuracy(aliases={"mountain-lion": ["Puma", "Cougar"]})
    assert reward.score(ClassificationTask().parse(tagged(text), about, FRAME), about) == expected


@pytest.mark.parametrize(
    ("text", "target", "accuracy", "error"),
    [
        pytest.param("4", "4", 1, 1, id="right"),
        pytest.param("04.", "4", 1, 1, id="other-writing"),
        pytest.param("3", "4", 0, 0.75, id="one-too-few"),
        pytest.param("5", "4", 0, 0.75, id="one-too-many"),
        pytest.param("8", "4", 0, 0, id="twice-as-many"),
        pytest.param("400", "4", 0, 0, id="many-more-is-cut-off"),
        pytest.param("0", "4", 0, 0, id="none-of-four"),
        pytest.param("0", "0", 1, 1, id="none-of-none"),
        pytest.param("1", "0", 0, 0, id="one-of-none"),
        pytest.param("four", "4", 0, 0, id="in-words"),
        pytest.param("-4", "4", 0, 0, id="negative"),
        pytest.param("3", "many", 0, 0, id="truth-that-is-no-number"),
    ],
)
def test_counts(text: str, target: str, accuracy: float, error: float) -> None:
    about = sample(target)
    answer = CountingTask().parse(tagged(text), about, FRAME)
    assert Accuracy().bounded_scores([answer], [about]) == [accuracy]
    assert CountError().bounded_scores([answer], [about]) == [error]


@pytest.mark.parametrize(
    ("words", "expected"),
    [(0, 0), (1, 0.25), (4, 1), (10, 1), (11, 0.9), (15, 0.5), (20, 0), (500, 0)],
)
def test_length(words: int, expected: float) -> None:
    answer = Answer(" word\n" * words, "", None, False)
    assert Length(shortest=4, longest=10).bounded_scores([answer], [sample(ONE)]) == [pytest.approx(expected)]


@pytest.mark.parametrize(
    ("text", "size", "expected"),
    [
        pytest.param("a b c d e", 2, 1, id="no-repetition"),
        pytest.param("a b a b", 2, 2 / 3, id="one-run-of-three-twice"),
        pytest.param("so so so so so", 2, 1 / 4, id="one-word"),
        pytest.param("So SO so", 2, 1 / 2, id="case-does-not-count"),
        pytest.param("a b c", 4, 1, id="too-short"),
        pytest.param("", 4, 1, id="empty"),
    ],
)
def test_repetition(text: str, size: int, expected: float) -> None:
    assert Repetition(size=size).score(Answer(text, "", None, False), sample(ONE)) == pytest.approx(expected)


@pytest.mark.parametrize(("reasoning", "expected"), [("", 0), ("a b", 0.5), ("a b c d", 1), ("a " * 99, 1)])
def test_reasoning_present(reasoning: str, expected: float) -> None:
    about = sample(ONE)
    answer = DetectionTask().parse(f"{tagged('No Objects', reasoning)} these words do not count", about, FRAME)
    assert ReasoningPresent(words=4).bounded_scores([answer], [about]) == [expected]


def test_a_function_of_your_own_gets_all_there_is_to_know() -> None:
    seen = []
    about = Sample(0, Image.new("1", (500, 400)), 7, "cat", ONE, {"source": "web"})
    answer = DetectionTask().parse(tagged(boxes((EXACT, 1))), about, Frame(500, 400))

    def reward(*given: object) -> float:
        seen.append(given)
        return 0.25

    assert FunctionReward(reward)([answer], [about]).tolist() == [0.25]
    value = (Detection((10, 20, 300, 400), "cat", 1.0),)
    assert seen == [(tagged(boxes((EXACT, 1))), value, ONE, (500, 400), {"source": "web"})]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param(0.3, 0.3, id="inside"),
        pytest.param(-3, 0, id="below"),
        pytest.param(1.5, 1, id="above"),
        pytest.param(True, 1, id="boolean"),
        pytest.param(None, None, id="does-not-apply"),
    ],
)
def test_what_a_function_gives_is_cut_off_at_the_bounds(given: float | None, expected: float | None) -> None:
    reward = FunctionReward(lambda *_: given)
    assert reward.bounded_scores(answers("a"), [sample(ONE)]) == [expected]


@pytest.mark.parametrize("fault", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_a_fault_with_a_warning_and_no_part_of_means(fault: float) -> None:
    values = iter([fault, 0.5])
    reward = FunctionReward(lambda *_: next(values))
    with pytest.warns(UserWarning, match=f"FunctionReward gave {fault}, which is no score"):
        scores = reward(answers("a", "b"), [sample(ONE)] * 2)
    assert scores.tolist() == [math.inf, 0.5]
    assert reward.compute() == 0.5


def test_an_error_in_a_function_is_not_hidden() -> None:
    def broken(*_: object) -> float:
        raise KeyError("label")

    with pytest.raises(KeyError, match="label"):
        FunctionReward(broken)(answers("a"), [sample(ONE)])


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "find", "cat", "a", "b", "c", "good", "bad"]
TEXTS = ["a b c good", "bad", "c c c c c c c c c c", ""]


@pytest.fixture(params=[1, 2, 3], ids=["one-logit", "two-classes", "three-classes"])
def classifier(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, int]:
    """The folder of a small random BERT that classifies pairs of texts, and its number of classes."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=12,
        num_labels=request.param,
        initializer_range=1.0,
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_max_length=12,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(tmp_path)
    return tmp_path, request.param


def test_a_reward_model_gives_the_probabilities_of_a_plain_forward(classifier: tuple[Path, int]) -> None:
    from transformers import BertForSequenceClassification

    folder, classes = classifier
    plain = BertForSequenceClassification.from_pretrained(folder).eval()
    for label in range(classes):
        reward = RewardModel(str(folder), label=label)
        reward.load()
        about = Sample(0, Image.new("1", (5, 5)), 0, "find cat", ONE)
        expected = []
        for text in TEXTS:  # one at a time, without padding; the first two tokens of a pair stand for the question
            words = [WORDS.index(word) for word in text.split()][:7]  # 12 tokens at the most
            ids = [2, 4, 5, 3, *words, 3]
            kinds = [0] * 4 + [1] * (len(words) + 1)
            with torch.no_grad():
                logits = plain(torch.tensor([ids]), token_type_ids=torch.tensor([kinds])).logits[0]
            expected.append((logits.sigmoid() if classes == 1 else logits.softmax(0))[label].item())
        found = reward(answers(*TEXTS), [about] * len(TEXTS)).tolist()
        assert found == pytest.approx(expected, abs=1e-5)
        assert max(expected) - min(expected) > 0.01  # or any text would do
        assert reward.score(answers(TEXTS[0])[0], about) == pytest.approx(expected[0], abs=1e-5)


def test_a_reward_model_is_not_trained(classifier: tuple[Path, int]) -> None:
    reward = RewardModel(str(classifier[0]))
    reward.load()
    model = reward.model
    reward.load()
    assert reward.model is model  # once is enough
    assert not any(parameter.requires_grad for parameter in reward.parameters())
    assert not reward.model.training
    assert not reward(answers("a"), [sample(ONE)]).requires_grad


def test_a_shorter_limit_cuts_the_text(classifier: tuple[Path, int]) -> None:
    reward = RewardModel(str(classifier[0]), max_length=6)
    reward.load()
    about = Sample(0, Image.new("1", (5, 5)), 0, "a", ONE)
    first, other = reward(answers("a b c good", "a b c bad"), [about] * 2).tolist()
    assert first == other  # what differs is behind the limit
    longer = RewardModel(str(classifier[0]))
    longer.load()
    first, other = longer(answers("a b c good", "a b c bad"), [about] * 2).tolist()
    assert first != other


class Characters(Reward):
    """Length of the answer; does not apply where nothing is to be found."""

    bounds = (0.0, 100.0)

    def score(self, answer: Answer, sample: Question) -> float | None:
        return float(len(answer.text)) if sample.target else None


def answers(*texts: str) -> list[Answer]:
    return [Answer(text, "", None, False) for text in texts]


def test_a_reward_returns_scores_and_keeps_their_running_mean() -> None:
    reward = Characters()
    scores = reward(answers("a", "abc"), [sample(ONE)] * 2)
    assert scores.dtype == torch.float32
    assert scores.tolist() == [1, 3]
    assert reward.compute() == 2
    reward.update(answers("abcde"), [sample(ONE)])
    assert reward.compute() == 3
    reward(answers("abcdefg"), [sample(ONE)])
    assert reward.compute() == 4
    reward.reset()
    reward(answers("ab"), [sample(ONE)])
    assert reward.compute() == 2


def test_a_score_that_does_not_apply_is_nan_and_left_out_of_the_mean() -> None:
    reward = Characters()
    scores = reward(answers("a", "abcdef", "abc"), [sample(ONE), sample(NONE), sample(ONE)])
    assert scores.isnan().tolist() == [False, True, False]
    assert reward.compute() == 2


def test_as_many_answers_as_samples_are_asked_for() -> None:
    with pytest.raises(ValueError, match="shorter"):
        Characters()(answers("a", "b"), [sample(ONE)])


ALL = [
    Accuracy,
    CentreDistance,
    CountError,
    DetectionConfidence,
    DetectionDIoU,
    DetectionF1,
    DetectionGIoU,
    DetectionIoU,
    Format,
    GroundingGIoU,
    GroundingIoU,
    Length,
    PaperConfidence,
    PaperGroundingGIoU,
    PointInBox,
    ReasoningPresent,
    Repetition,
]


@pytest.mark.parametrize("kind", ALL)
def test_rewards_have_no_state_to_save_and_can_be_sent_to_workers(kind: type[Reward]) -> None:
    reward = kind(weight=0.5)
    reward(answers("a", "b"), [sample(ONE)] * 2)
    copy = pickle.loads(pickle.dumps(reward))
    assert reward.state_dict() == {}
    assert (copy.weight, copy.compute()) == (0.5, reward.compute())
