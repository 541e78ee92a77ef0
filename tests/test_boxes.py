"""Boxes against independent references: pycocotools for IoU, a plain loop for matching."""

import numpy as np
import pytest
from pycocotools import mask

from vrft.boxes import Box, from_frame, iou_matrix, match_by_confidence, to_frame
from vrft.types import Frame

SQUARE: Box = (0, 0, 10, 10)
HALF: Box = (0, 0, 10, 5)


def random_boxes(rng: np.random.Generator, count: int) -> list[Box]:
    """Integer boxes, up to 19 wide and high; some have no area or reversed corners."""
    rows = np.hstack([rng.integers(0, 6, (count, 2)), rng.integers(4, 20, (count, 2))])
    return [tuple(map(float, row)) for row in rows]


@pytest.mark.parametrize("frame", [Frame(1000, 1000), Frame(644, 476), Frame(28, 84)])
def test_frame_round_trip(frame: Frame) -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        x0, y0 = rng.integers(0, [frame.width, frame.height]).tolist()
        x1, y1 = rng.integers([x0 + 1, y0 + 1], [frame.width, frame.height], endpoint=True).tolist()
        size = tuple(rng.integers(1, 4000, 2).tolist())
        assert to_frame(from_frame((x0, y0, x1, y1), size, frame), size, frame) == (x0, y0, x1, y1)


def test_to_frame_is_off_by_half_a_unit_at_most() -> None:
    rng = np.random.default_rng(0)
    for corners in rng.uniform(0, 480, (100, 2, 2)):
        (x0, y0), (x1, y1) = corners.min(0), corners.max(0) + 1
        back = from_frame(to_frame((x0, y0, x1, y1), (640, 480), Frame(1000, 1000)), (640, 480), Frame(1000, 1000))
        assert np.abs(np.subtract(back, (x0, y0, x1, y1))).max() <= 0.5 * 640 / 1000 + 1e-9


def test_a_sliver_keeps_one_unit_inside_the_frame() -> None:
    assert to_frame((11, 100, 12, 200), (4000, 3000), Frame(1000, 700)) == (3, 23, 4, 47)
    assert to_frame((3999.9, 2999.9, 4000, 3000), (4000, 3000), Frame(1000, 700)) == (999, 699, 1000, 700)


def test_the_whole_frame_is_the_whole_image_exactly() -> None:
    for width in range(1, 200):
        assert from_frame((0, 0, 84, 644), (width, 2 * width), Frame(84, 644)) == (0, 0, width, 2 * width)


def test_iou_is_that_of_pycocotools() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        a, b = (random_boxes(rng, count) for count in rng.integers(1, 8, 2))
        xywh = [[[x0, y0, x1 - x0, y1 - y0] for x0, y0, x1, y1 in boxes] for boxes in (a, b)]
        np.testing.assert_allclose(iou_matrix(a, b), mask.iou(*xywh, [0] * len(b)), atol=1e-12)


@pytest.mark.parametrize(("a", "b"), [([], []), ([SQUARE], []), ([], [SQUARE, HALF])])
def test_iou_of_no_boxes_keeps_its_shape(a: list[Box], b: list[Box]) -> None:
    assert iou_matrix(a, b).shape == (len(a), len(b))


@pytest.mark.parametrize(
    "degenerate",
    [
        pytest.param((5, 5, 5, 5), id="point"),
        pytest.param((2, 5, 8, 5), id="line"),
        pytest.param((8, 2, 2, 8), id="reversed-x"),
        pytest.param((10, 10, 0, 0), id="reversed-corners"),
    ],
)
def test_a_box_without_area_overlaps_nothing(degenerate: Box) -> None:
    assert iou_matrix([degenerate], [SQUARE, degenerate]).tolist() == [[0, 0]]


def naive_iou(a: Box, b: Box) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (a, b)]
    return width * height / (sum(areas) - width * height)


def naive_match(
    predicted: list[Box], scores: list[float], true: list[Box], threshold: float
) -> list[tuple[int, int, float]]:
    free, pairs = list(range(len(true))), []
    for i in sorted(range(len(predicted)), key=lambda i: -scores[i]):
        best, taken = 0.0, None
        for j in free:
            iou = naive_iou(predicted[i], true[j])
            if iou > best:
                best, taken = iou, j
        if taken is not None and best > threshold:
            free.remove(taken)
            pairs.append((i, taken, best))
    return pairs


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.5])
def test_matching_is_that_of_a_plain_loop(threshold: float) -> None:
    rng = np.random.default_rng(0)
    matched = 0
    for _ in range(200):
        true = random_boxes(rng, rng.integers(0, 8))
        moved = [tuple(np.add(box, rng.integers(-1, 2, 4)).tolist()) for box in true]
        predicted = random_boxes(rng, rng.integers(0, 4)) + moved
        scores = (rng.integers(0, 4, len(predicted)) / 4).tolist()
        expected = naive_match(predicted, scores, true, threshold)
        assert match_by_confidence(predicted, scores, true, threshold) == expected
        matched += len(expected)
    assert matched > 50


def test_equal_scores_keep_their_order() -> None:
    assert match_by_confidence([SQUARE] * 3, [0.5, 0.9, 0.9], [SQUARE, SQUARE], 0.5) == [(1, 0, 1.0), (2, 1, 1.0)]


def test_a_sure_mediocre_box_is_matched_before_an_unsure_exact_one() -> None:
    assert match_by_confidence([SQUARE, HALF], [0.8, 0.9], [SQUARE], 0.4) == [(1, 0, 0.5)]


@pytest.mark.parametrize(("threshold", "matches"), [(0.5, 0), (0.49, 1)])
def test_iou_must_be_above_the_threshold(threshold: float, matches: int) -> None:
    assert iou_matrix([HALF], [SQUARE]).item() == 0.5
    assert len(match_by_confidence([HALF], [1.0], [SQUARE], threshold)) == matches


@pytest.mark.parametrize(("predicted", "true"), [([SQUARE], []), ([], [SQUARE]), ([], [])])
def test_nothing_matches_nothing(predicted: list[Box], true: list[Box]) -> None:
    assert match_by_confidence(predicted, [1.0] * len(predicted), true, 0.5) == []
