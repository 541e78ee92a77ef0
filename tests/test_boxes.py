"""Boxes against independent references: pycocotools for IoU, exact fractions and plain loops for the rest."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask

from vrft.boxes import (
    Box,
    diou_matrix,
    from_frame,
    giou_matrix,
    iou_matrix,
    match_by_confidence,
    match_optimally,
    to_frame,
)
from vrft.types import Frame

SQUARE: Box = (0, 0, 10, 10)
HALF: Box = (0, 0, 10, 5)


def random_boxes(rng: np.random.Generator, count: int) -> list[Box]:
    """Draw integer boxes up to 19 wide and high; some have no area or reversed corners."""
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


def test_to_frame_is_off_by_at_most_half_a_unit() -> None:
    rng = np.random.default_rng(0)
    for corners in rng.uniform(0, 480, (100, 2, 2)):
        (x0, y0), (x1, y1) = corners.min(0), corners.max(0) + 1
        back = from_frame(to_frame((x0, y0, x1, y1), (640, 480), Frame(1000, 1000)), (640, 480), Frame(1000, 1000))
        assert np.abs(np.subtract(back, (x0, y0, x1, y1))).max() <= 0.5 * 640 / 1000 + 1e-9


def test_a_sliver_keeps_one_unit_inside_the_frame() -> None:
    assert to_frame((11, 100, 12, 200), (4000, 3000), Frame(1000, 700)) == (2, 23, 3, 47)
    assert to_frame((3999.9, 2999.9, 4000, 3000), (4000, 3000), Frame(1000, 700)) == (999, 699, 1000, 700)


SIZES = [(8, 8), (9, 13), (640, 480), (6000, 4000), (4000, 6000), (6000, 8), (8, 6000), (1, 5000), (333, 1)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(Frame(1000, 1000), id="thousandths"),
        pytest.param(Frame(1036, 420), id="pixels-of-a-resized-image"),
        pytest.param(Frame(28, 3584), id="pixels-of-a-narrow-image"),
        pytest.param(Frame(1, 1, 3), id="unit"),
        pytest.param(Frame(1, 1, 1), id="unit-with-one-decimal"),
    ],
)
def test_a_round_trip_of_a_box_is_within_a_unit_of_the_frame(size: tuple[int, int], frame: Frame) -> None:
    rng = np.random.default_rng(0)
    units = frame.width * 10**frame.decimals, frame.height * 10**frame.decimals
    unit = np.array([size[0] / units[0], size[1] / units[1]] * 2)  # in pixels
    for k in range(200):
        corners = rng.uniform(0, 1, (2, 2)) * ([1, 1] if k % 2 else [0.01, 0.01])  # every other box is small
        low, high = corners.min(0) * size, corners.max(0) * size
        box = (*low.tolist(), *high.tolist())
        named = to_frame(box, size, frame)
        assert 0 <= named[0] < named[2] <= frame.width
        assert 0 <= named[1] < named[3] <= frame.height
        assert all(round(x, frame.decimals) == x for x in named)
        assert all(isinstance(x, float if frame.decimals else int) for x in named)
        assert (np.abs(np.subtract(from_frame(named, size, frame), box)) <= unit + 1e-9).all()


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.tuples(st.integers(1, 6000), st.integers(1, 6000)),
    st.tuples(st.integers(1, 4000), st.integers(1, 4000)).map(lambda sides: Frame(*sides))
    | st.integers(1, 4).map(lambda decimals: Frame(1, 1, decimals)),
    st.tuples(*[st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted)] * 2),
)
def test_a_round_trip_of_any_box_in_any_image_is_within_a_unit_of_any_frame(
    size: tuple[int, int], frame: Frame, shares: tuple[list[float], list[float]]
) -> None:
    (x0, x1), (y0, y1) = shares
    box = (x0 * size[0], y0 * size[1], x1 * size[0], y1 * size[1])
    named = to_frame(box, size, frame)
    assert 0 <= named[0] < named[2] <= frame.width
    assert 0 <= named[1] < named[3] <= frame.height
    back = from_frame(named, size, frame)
    for i, value in enumerate(box):
        unit = size[i % 2] / (frame[i % 2] * 10**frame.decimals)
        assert abs(back[i] - value) <= unit * (1 + 1e-9)
    assert to_frame(back, size, frame) == named


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        pytest.param((-5, -0.4, 700, 480.4), (0, 0, 1000, 1000), id="reaches-over-the-edges"),
        pytest.param((-50, -50, -10, -10), (0, 0, 1, 1), id="left-of-the-image"),
        pytest.param((900, 900, 950, 950), (999, 999, 1000, 1000), id="right-of-the-image"),
        pytest.param((320, 240, 320, 240), (500, 500, 501, 501), id="point"),
        pytest.param((400, 300, 100, 100), (390, 416, 391, 417), id="reversed-corners"),
    ],
)
def test_an_invalid_box_is_moved_into_the_frame(box: Box, expected: Box) -> None:
    assert to_frame(box, (640, 480), Frame(1000, 1000)) == expected


def test_the_whole_frame_is_exactly_the_whole_image() -> None:
    for width in range(1, 200):
        assert from_frame((0, 0, 84, 644), (width, 2 * width), Frame(84, 644)) == (0, 0, width, 2 * width)


def test_iou_equals_that_of_pycocotools() -> None:
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


def exact(a: Box, b: Box) -> tuple[Fraction, Fraction, Fraction]:
    """Return IoU, GIoU and DIoU of two boxes with area, from the papers' formulas, as fractions."""
    ax0, ay0, ax1, ay1, bx0, by0, bx1, by1 = map(Fraction, (*a, *b))
    zero = Fraction(0)
    both = max(zero, min(ax1, bx1) - max(ax0, bx0)) * max(zero, min(ay1, by1) - max(ay0, by0))
    either = (ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0) - both
    wide, high = max(ax1, bx1) - min(ax0, bx0), max(ay1, by1) - min(ay0, by0)
    apart = ((ax0 + ax1) / 2 - (bx0 + bx1) / 2) ** 2 + ((ay0 + ay1) / 2 - (by0 + by1) / 2) ** 2
    iou = both / either
    return iou, iou - (wide * high - either) / (wide * high), iou - apart / (wide**2 + high**2)


def test_iou_giou_and_diou_equal_the_papers_formulas() -> None:
    rng = np.random.default_rng(0)
    seen = []
    for _ in range(30):
        a, b = ([(x, y, x + w, y + h) for x, y, w, h in rng.integers(1, 12, (4, 4)).tolist()] for _ in range(2))
        expected = np.array([[[float(value) for value in exact(p, q)] for q in b] for p in a])
        found = np.stack([iou_matrix(a, b), giou_matrix(a, b), diou_matrix(a, b)], -1)
        np.testing.assert_allclose(found, expected, atol=1e-12)
        seen.append(expected)
    assert (np.stack(seen)[..., 1] < 0).any()
    assert (np.stack(seen)[..., 2] < 0).any()


@pytest.mark.parametrize(
    ("box", "giou", "diou"),
    [
        pytest.param((0, 0, 10, 10), 1, 1, id="same"),
        pytest.param((10, 0, 20, 10), 0, -100 / 500, id="side-by-side"),
        pytest.param((10, 10, 20, 20), -200 / 400, -200 / 800, id="corner-to-corner"),
        pytest.param((2, 2, 8, 8), 0.36, 0.36, id="inside-with-the-same-centre"),
        pytest.param((0, 0, 5, 5), 0.25, 0.25 - 12.5 / 200, id="inside-a-corner"),
        pytest.param((990, 990, 1000, 1000), -(1e6 - 200) / 1e6, -(990**2) / 1e6, id="far-away"),
    ],
)
def test_giou_and_diou_of_boxes_computed_by_hand(box: Box, giou: float, diou: float) -> None:
    assert giou_matrix([box], [SQUARE]).item() == pytest.approx(giou, abs=1e-12)
    assert diou_matrix([box], [SQUARE]).item() == pytest.approx(diou, abs=1e-12)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(*[st.lists(st.floats(0, 6000, width=32), min_size=4, max_size=4)] * 2)
def test_overlaps_of_any_boxes_are_symmetric_and_in_their_range(p: list[float], q: list[float]) -> None:
    a, b = (tuple(sorted(x[::2]) + sorted(x[1::2])) for x in (p, q))
    a, b = ((x0, y0, x1, y1) for x0, x1, y0, y1 in (a, b))
    for matrix, lowest in ((iou_matrix, 0), (giou_matrix, -1), (diou_matrix, -1)):
        value = matrix([a], [b]).item()
        assert lowest - 1e-9 <= value <= 1 + 1e-9
        assert value == pytest.approx(matrix([b], [a]).item(), abs=1e-9)
        assert math.isfinite(matrix([a], [a]).item())
    assert giou_matrix([a], [b]).item() <= iou_matrix([a], [b]).item() + 1e-9
    assert diou_matrix([a], [b]).item() <= iou_matrix([a], [b]).item() + 1e-9


@pytest.mark.parametrize("matrix", [giou_matrix, diou_matrix])
@pytest.mark.parametrize(("a", "b"), [([], []), ([SQUARE], []), ([], [SQUARE, HALF])])
def test_overlaps_of_no_boxes_keep_their_shape(matrix: object, a: list[Box], b: list[Box]) -> None:
    assert matrix(a, b).shape == (len(a), len(b))


def naive_match(similarity: np.ndarray, scores: list[float], threshold: float) -> list[tuple[int, int, float]]:
    free, pairs = list(range(similarity.shape[1])), []
    for i in sorted(range(len(scores)), key=lambda i: -scores[i]):
        best, taken = -math.inf, None
        for j in free:
            if similarity[i][j] > best:
                best, taken = similarity[i][j], j
        if taken is not None and best > threshold:
            free.remove(taken)
            pairs.append((i, taken, best))
    return pairs


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.5])
def test_matching_equals_that_of_a_plain_loop(threshold: float) -> None:
    rng = np.random.default_rng(0)
    matched = 0
    for _ in range(200):
        true = random_boxes(rng, rng.integers(0, 8))
        moved = [tuple(np.add(box, rng.integers(-1, 2, 4)).tolist()) for box in true]
        predicted = random_boxes(rng, rng.integers(0, 4)) + moved
        scores = (rng.integers(0, 4, len(predicted)) / 4).tolist()
        similarity = np.array([[naive_iou(a, b) for b in true] for a in predicted]).reshape(len(predicted), len(true))
        expected = naive_match(similarity, scores, threshold)
        assert match_by_confidence(iou_matrix(predicted, true), scores, threshold) == expected
        matched += len(expected)
    assert matched > 50


def best_matching(similarity: np.ndarray, threshold: float) -> tuple[int, float]:
    """Return the most pairs above the threshold over all assignments, and the largest sum of that many."""
    if similarity.shape[0] > similarity.shape[1]:
        similarity = similarity.T
    rows, columns = similarity.shape
    counted = [
        [similarity[i, j] for i, j in enumerate(order) if similarity[i, j] > threshold]
        for order in itertools.permutations(range(columns), rows)
    ]
    return max((len(values), sum(values)) for values in counted)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5])
def test_optimal_matching_has_the_most_pairs_and_then_the_largest_sum(threshold: float) -> None:
    rng = np.random.default_rng(0)
    better = 0
    for _ in range(300):
        similarity = rng.integers(-4, 11, rng.integers(1, 6, 2)) / 10
        pairs = match_optimally(similarity, threshold)
        rows, columns = [i for i, _, _ in pairs], [j for _, j, _ in pairs]
        assert len({*rows}) == len(rows)
        assert len({*columns}) == len(columns)
        assert all(value == similarity[i, j] > threshold for i, j, value in pairs)
        most, largest = best_matching(similarity, threshold)
        assert (len(pairs), sum(value for _, _, value in pairs)) == (most, pytest.approx(largest, abs=1e-12))
        greedy = match_by_confidence(similarity, rng.uniform(0, 1, len(similarity)), threshold)
        better += sum(value for _, _, value in pairs) > sum(value for _, _, value in greedy) + 1e-9
    assert better > 30  # the methods have to differ


def test_optimal_matching_prefers_three_pairs_to_two_better_ones() -> None:
    similarity = np.array([[0.51, 0.0, 0.0], [1.0, 0.51, 0.0], [0.0, 1.0, 0.51]])
    assert sorted(match_optimally(similarity, 0.5)) == [(0, 0, 0.51), (1, 1, 0.51), (2, 2, 0.51)]


def test_optimal_matching_prefers_two_pairs_to_a_better_one() -> None:
    similarity = np.array([[0.9, 0.8], [0.8, 0.0]])
    assert match_by_confidence(similarity, [0.9, 0.5], 0.5) == [(0, 0, 0.9)]
    assert sorted(match_optimally(similarity, 0.5)) == [(0, 1, 0.8), (1, 0, 0.8)]


@pytest.mark.parametrize(
    "match", [lambda s: match_by_confidence(s, [1.0] * len(s), 0.5), lambda s: match_optimally(s, 0.5)]
)
def test_matching_does_not_modify_its_input(match: object) -> None:
    similarity = np.array([[0.9, 0.8], [0.8, 0.1]])
    before = similarity.copy()
    match(similarity)
    assert (similarity == before).all()


def test_equal_scores_keep_their_order() -> None:
    similarity = iou_matrix([SQUARE] * 3, [SQUARE, SQUARE])
    assert match_by_confidence(similarity, [0.5, 0.9, 0.9], 0.5) == [(1, 0, 1.0), (2, 1, 1.0)]


def test_a_confident_mediocre_box_is_matched_before_an_exact_one() -> None:
    assert match_by_confidence(iou_matrix([SQUARE, HALF], [SQUARE]), [0.8, 0.9], 0.4) == [(1, 0, 0.5)]


@pytest.mark.parametrize(("threshold", "matches"), [(0.5, 0), (0.49, 1)])
def test_iou_must_be_above_the_threshold(threshold: float, matches: int) -> None:
    similarity = iou_matrix([HALF], [SQUARE])
    assert similarity.item() == 0.5
    assert len(match_by_confidence(similarity, [1.0], threshold)) == matches
    assert len(match_optimally(similarity, threshold)) == matches


@pytest.mark.parametrize(("predicted", "true"), [([SQUARE], []), ([], [SQUARE]), ([], [])])
def test_nothing_matches_nothing(predicted: list[Box], true: list[Box]) -> None:
    assert match_by_confidence(iou_matrix(predicted, true), [1.0] * len(predicted), 0.5) == []
    assert match_optimally(iou_matrix(predicted, true), 0.5) == []
