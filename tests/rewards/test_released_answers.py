"""Answers on which the released functions of Visual-RFT were run; comments in the tables have their results."""

from __future__ import annotations

import pytest

from tests.helpers.answers import (
    EXACT,
    FAR,
    FRAME,
    NONE,
    ONE,
    SURE,
    TWO,
    boxes,
    detection_scores,
    sample,
    tagged,
)
from vrft.rewards import (
    CentreDistance,
    Format,
    GroundingGIoU,
    GroundingIoU,
    PaperGroundingGIoU,
)
from vrft.tasks import GroundingTask
from vrft.types import Target

TABLE_GOOD = [12, 25, 300, 390]  # the good box in the tables, for a true box [10, 20, 300, 400]


@pytest.mark.parametrize(
    ("text", "target", "expected"),
    [
        # after the arrows: IoU, confidence and format rewards of the released functions
        pytest.param(tagged(boxes((EXACT, 1))), ONE, (1, 1, 1), id="exact-box"),  # -> 1, 1, 1
        pytest.param(tagged(boxes((TABLE_GOOD, 0.9))), ONE, (0.954, 0.9994, 1), id="good-box"),  # -> .954, .9, 1
        pytest.param(tagged(boxes((TABLE_GOOD, 0.9))), TWO, (0.477, 0.6629, 1), id="good-box-of-two"),  # -> .477, .9, 1
        pytest.param(  # -> 1, 1, 1
            tagged(boxes(([700, 20, 900, 990], 0.5))), ONE, (0, 0.2344, 1), id="wrong-box-with-the-same-y1"
        ),
        pytest.param(  # -> 0, .5, 1
            tagged(boxes(([700, 21, 900, 990], 0.5))), ONE, (0, 0.2344, 1), id="wrong-box"
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
            tagged(boxes((TABLE_GOOD, 0.9))), NONE, (0, 0.0997, 1), id="box-where-there-is-nothing"
        ),
        pytest.param(tagged("No Objects"), ONE, (0, 0.25, 1), id="wrong-no-objects"),  # -> 0, 0, 1
        pytest.param(boxes((TABLE_GOOD, 0.9)), ONE, (0, 0, 0), id="bare-list"),  # -> .954, .9, 0
        pytest.param(  # -> 0, 0, 1
            f"<think>hm</think>\n<answer>\n{SURE}\n</answer>", ONE, (0.954, 0.9994, 1), id="answer-on-its-own-line"
        ),
        pytest.param(  # -> 0, 0, 1
            tagged(f"```json\n{SURE}\n```"), ONE, (0.954, 0.9994, 1), id="json-code-fence"
        ),
        pytest.param(  # -> 0, 0, 1
            tagged('[{"bbox_2d": [12, 25, 300, 390], "confidence": 0.9}]'), ONE, (0.954, 0.9994, 1), id="bbox-2d-keys"
        ),
        pytest.param(  # -> 0, 0, 1
            tagged("[{'Label': \"cat's\", 'Position': [12, 25, 300, 390], 'Confidence': 0.9}]"),
            ONE,
            (0.954, 0.9994, 1),
            id="apostrophe-in-a-string",
        ),
        pytest.param(  # -> 0, .1, 1
            tagged(boxes(([300, 390, 12, 25], 0.9))), ONE, (0, 0, 1), id="reversed-corners"
        ),
        pytest.param(  # -> .954, .9, 1
            tagged(boxes((TABLE_GOOD, 0.9), (TABLE_GOOD, 0.9))), ONE, (0.318, 0.7433, 1), id="exact-duplicate"
        ),
        pytest.param(  # -> .477, .9, 1
            tagged(boxes((TABLE_GOOD, 0.9), ([13, 25, 300, 390], 0.9))), ONE, (0.318, 0.7433, 1), id="near-duplicate"
        ),
        pytest.param(  # -> 0, .1, 1
            tagged(boxes(([10, 20, 155, 400], 0.9))), ONE, (0, 0.1994, 1), id="iou-exactly-a-half"
        ),
        pytest.param(f"<think>hm</think><answer>{SURE[:-10]}", ONE, (0, 0, 0), id="truncated-list"),  # -> 0, 0, 0
        pytest.param(  # -> .954, .9, 1
            f"<think><answer>{SURE}</answer></think><answer>No Objects</answer>",
            ONE,
            (0, 0.25, 0),
            id="box-inside-think",
        ),
        pytest.param(  # -> .954, .9, 1
            f"<think>hm</think><answer>{SURE}</answer><answer>{SURE}</answer>",
            ONE,
            (0.954, 0.9994, 0),
            id="two-answer-blocks",
        ),
        pytest.param(  # -> .351, .55, 1
            tagged(boxes(([10, 20, 300, 287], 0.9), (EXACT, 0.8))), ONE, (0.3333, 0.7427, 1), id="mediocre-box-first"
        ),
    ],
)
def test_detection_rewards_of_answers_with_known_released_rewards(
    text: str, target: Target, expected: tuple[float, float, float]
) -> None:
    assert detection_scores(text, target) == pytest.approx(expected, abs=5e-4)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # the released accuracy is math-verify's verdict, or else 1 + GIoU of the first four numbers
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
def test_grounding_rewards_of_answers_with_a_known_released_reward(text: str, expected: tuple[float, ...]) -> None:
    about = sample(ONE)
    answer = GroundingTask().parse(text, about, FRAME)
    rewards = (GroundingIoU(), GroundingGIoU(), PaperGroundingGIoU(), CentreDistance(), Format())
    for reward, value in zip(rewards, expected, strict=True):
        assert reward.score(answer, about) == pytest.approx(value, abs=6e-4)
