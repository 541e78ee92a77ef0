"""Rewards on the answers that broke the released ones (reference: visual-rft.md, defects D1 to D6), and as metrics."""

import math
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vrft.grpo import group_advantages
from vrft.rewards import Accuracy, DetectionConfidence, DetectionIoU, Format, Reward
from vrft.tasks import ClassificationTask, DetectionTask
from vrft.types import Answer, Detection, Frame, Sample, Target

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
        pytest.param(tagged(boxes((EXACT, 1))), ONE, (1, 1, 1), id="exact"),
        pytest.param(tagged(SURE), ONE, (GOOD_IOU, 0.9, 1), id="good"),
        pytest.param(tagged(SURE), TWO, (GOOD_IOU / 2, 0.45, 1), id="missed-object-counts"),
        pytest.param(tagged(boxes((EXACT, 1))), FOUR, (0.25, 0.25, 1), id="one-sure-box-of-four"),
        pytest.param(tagged(boxes(([700, 20, 900, 990], 0.5))), ONE, (0, 0.25, 1), id="D1-same-y1"),
        pytest.param(tagged(boxes((FAR, 0.5))), ONE, (0, 0.25, 1), id="wrong-box"),
        pytest.param(tagged("No Objects", "I count 0"), ONE, (0, 0, 1), id="D1-zero-in-reasoning"),
        pytest.param(tagged(boxes((GOOD, "NaN"))), ONE, (0, 0, 1), id="D2-nan"),
        pytest.param(tagged(boxes((GOOD, "Infinity"))), ONE, (0, 0, 1), id="D2-infinity"),
        pytest.param(tagged(f"\n{SURE}\n"), ONE, (GOOD_IOU, 0.9, 1), id="D3-own-line"),
        pytest.param(tagged("No Objects"), NONE, (1, 1, 1), id="D5-right-no-objects"),
        pytest.param(tagged("[]"), NONE, (1, 1, 1), id="D5-right-empty-list"),
        pytest.param(tagged("No Objects"), ONE, (0, 0, 1), id="wrong-no-objects"),
        pytest.param(tagged("[]"), ONE, (0, 0, 1), id="wrong-empty-list"),
        pytest.param(tagged(SURE), NONE, (0, 0.05, 1), id="box-where-there-is-nothing"),
        pytest.param(tagged(boxes((FAR, -10))), ONE, (0, 0, 1), id="D6-confidence-minus-10"),
        pytest.param(tagged(boxes((GOOD, 100), (FAR, 0.9))), ONE, (0, 0, 1), id="D6-confidence-100"),
        pytest.param(tagged(boxes((GOOD, "'0.9'"))), ONE, (0, 0, 1), id="D6-confidence-string"),
        pytest.param(tagged(boxes((GOOD, "true"))), ONE, (0, 0, 1), id="D6-confidence-boolean"),
        pytest.param(tagged("[{'Position': [12, 25, 300, 390]}]"), ONE, (0, 0, 1), id="D6-confidence-missing"),
        pytest.param(tagged(boxes((GOOD[:3], 0.9))), ONE, (0, 0, 1), id="D6-three-numbers"),
        pytest.param(tagged(boxes(([300, 390, 12, 25], 0.9))), ONE, (0, 0, 1), id="D6-reversed-corners"),
        pytest.param(tagged(boxes(([12, 25, 300, 1390], 0.9))), ONE, (0, 0, 1), id="D6-out-of-frame"),
        pytest.param(SURE, ONE, (0, 0, 0), id="no-tags"),
        pytest.param(tagged(f"```json\n{SURE}\n```"), ONE, (0, 0, 1), id="code-fence"),
        pytest.param(tagged("[{'bbox_2d': [12, 25, 300, 390], 'Confidence': 0.9}]"), ONE, (0, 0, 1), id="other-keys"),
        pytest.param(tagged("[{'Position': 'the cat's', 'Confidence': 0.9}]"), ONE, (0, 0, 1), id="apostrophe"),
        pytest.param(tagged(boxes((GOOD, 0.9), (GOOD, 0.9))), ONE, (GOOD_IOU / 2, 0.475, 1), id="duplicate"),
        pytest.param(tagged(boxes((GOOD, 0.9), (NEAR, 0.9))), ONE, (GOOD_IOU / 2, 0.475, 1), id="near-duplicate"),
        pytest.param(tagged(boxes(([10, 20, 155, 400], 0.9))), ONE, (0, 0.05, 1), id="iou-exactly-half"),
        pytest.param(tagged(SURE)[:-30], ONE, (0, 0, 0), id="truncated"),
        pytest.param(tagged("No Objects", tagged(SURE)), ONE, (0, 0, 0), id="box-inside-think"),
        pytest.param(tagged(f"{SURE}</answer><answer>No Objects"), ONE, (0, 0, 0), id="last-answer-is-wrong"),
        pytest.param(tagged(f"[]</answer><answer>{SURE}"), ONE, (GOOD_IOU, 0.9, 0), id="last-answer-is-right"),
        pytest.param(tagged(boxes((MEDIOCRE, 0.9), (EXACT, 0.8))), ONE, (MEDIOCRE_IOU / 2, 0.5, 1), id="surer-first"),
    ],
)
def test_detection_rewards(text: str, target: Target, expected: tuple[float, float, float]) -> None:
    assert detection_scores(text, target) == pytest.approx(expected, abs=1e-12)


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


class Length(Reward):
    """Length of the answer; does not apply where nothing is to be found."""

    def score(self, answer: Answer, sample: Sample) -> float | None:
        return float(len(answer.text)) if sample.target else None


def answers(*texts: str) -> list[Answer]:
    return [Answer(text, "", None, False) for text in texts]


def test_a_reward_returns_scores_and_keeps_their_running_mean() -> None:
    reward = Length()
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
    reward = Length()
    scores = reward(answers("a", "abcdef", "abc"), [sample(ONE), sample(NONE), sample(ONE)])
    assert scores.isnan().tolist() == [False, True, False]
    assert reward.compute() == 2


def test_as_many_answers_as_samples_are_asked_for() -> None:
    with pytest.raises(ValueError, match="shorter"):
        Length()(answers("a", "b"), [sample(ONE)])


@pytest.mark.parametrize("kind", [Accuracy, DetectionConfidence, DetectionIoU, Format])
def test_rewards_have_no_state_to_save_and_can_be_sent_to_workers(kind: type[Reward]) -> None:
    reward = kind(weight=0.5)
    reward(answers("a", "b"), [sample(ONE)] * 2)
    copy = pickle.loads(pickle.dumps(reward))
    assert reward.state_dict() == {}
    assert (copy.weight, copy.compute()) == (0.5, reward.compute())
