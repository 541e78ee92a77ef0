"""Boxes: coordinate frames, IoU and matching. Boxes are x0, y0, x1, y1; a box with x0 >= x1 or y0 >= y1 has no area."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vrft.types import Frame

Box = tuple[float, float, float, float]
Matrix = NDArray[np.float64]

Coordinates = Literal["thousandths", "pixels", "unit"]

FRAMES: dict[Coordinates, Frame] = {"thousandths": Frame(1000, 1000), "unit": Frame(1, 1, 3)}
"""Frames that do not depend on the image's size."""


def frame_of(coordinates: Coordinates, size: tuple[int, int]) -> Frame:
    """Return the frame of an image whose pixel coordinates refer to `size` (width, height)."""
    return Frame(*size) if coordinates == "pixels" else FRAMES[coordinates]


def with_decimals(frame: Frame, decimals: int | None) -> Frame:
    """Return the frame with another number of decimals, or unchanged if `decimals` is None."""
    return frame if decimals is None else frame._replace(decimals=decimals)


def to_frame(box: Box, image_size: tuple[int, int], frame: Frame) -> Box:
    """Convert pixels of an image of `image_size` (width, height) to the model's frame, rounded to its decimals.

    Without decimals, coordinates are integers. A side that rounds to zero length becomes one unit long, because boxes
    without area are invalid answers.
    """
    x0, x1 = _interval(box[0], box[2], image_size[0], frame.width, frame.decimals)
    y0, y1 = _interval(box[1], box[3], image_size[1], frame.height, frame.decimals)
    return x0, y0, x1, y1


def _interval(low: float, high: float, size: int, length: int, decimals: int) -> tuple[float, float]:
    units = length * 10**decimals
    start, end = round(low * units / size), round(high * units / size)
    if start >= end:
        start = math.floor((low + high) / 2 * units / size)
    start = min(max(start, 0), units - 1)
    end = min(max(end, start + 1), units)
    return (start / 10**decimals, end / 10**decimals) if decimals else (start, end)


def from_frame(box: Sequence[float], image_size: tuple[int, int], frame: Frame) -> Box:
    """Convert the model's frame to pixels of an image of `image_size` (width, height)."""
    (width, height), (x0, y0, x1, y1) = image_size, box
    return x0 * width / frame.width, y0 * height / frame.height, x1 * width / frame.width, y1 * height / frame.height


def in_frame(box: Box, image_size: tuple[int, int], frame: Frame) -> Box:
    """Round a box in pixels to what an answer in the model's frame can express: `to_frame` and back."""
    return from_frame(to_frame(box, image_size, frame), image_size, frame)


def iou_matrix(a: Sequence[Box], b: Sequence[Box]) -> Matrix:
    """Return the IoU of every pair, (len(a), len(b)). Boxes without area have IoU 0 with every box."""
    intersection, union, _, _ = _compare(a, b)
    return _ratio(intersection, union)


def giou_matrix(a: Sequence[Box], b: Sequence[Box]) -> Matrix:
    """Return the generalised IoU (arXiv 1902.09630) of every pair: IoU - (hull - union) / hull, in -1..1."""
    intersection, union, hull, _ = _compare(a, b)
    return _ratio(intersection, union) - _ratio(hull.prod(-1) - union, hull.prod(-1))


def diou_matrix(a: Sequence[Box], b: Sequence[Box]) -> Matrix:
    """Return the distance IoU (arXiv 1911.08287) of every pair: IoU - (centre distance / hull diagonal)^2, in -1..1."""
    intersection, union, hull, distance = _compare(a, b)
    return _ratio(intersection, union) - _ratio((distance**2).sum(-1), (hull**2).sum(-1))


def _compare(a: Sequence[Box], b: Sequence[Box]) -> tuple[Matrix, Matrix, Matrix, Matrix]:
    """Return intersection and union (A, B), and hull sides and centre distances along x and y (A, B, 2)."""
    p, q = np.asarray(a, np.float64).reshape(-1, 1, 4), np.asarray(b, np.float64).reshape(1, -1, 4)
    overlap = np.minimum(p[..., 2:], q[..., 2:]) - np.maximum(p[..., :2], q[..., :2])
    intersection = overlap.clip(0).prod(-1)
    union = sum((x[..., 2:] - x[..., :2]).clip(0).prod(-1) for x in (p, q)) - intersection
    hull = np.maximum(p[..., 2:], q[..., 2:]) - np.minimum(p[..., :2], q[..., :2])
    distance = (p[..., 2:] + p[..., :2] - q[..., 2:] - q[..., :2]) / 2
    return intersection, union, hull, distance


def _ratio(a: Matrix, b: Matrix) -> Matrix:
    return np.divide(a, b, out=np.zeros(np.shape(b)), where=b > 0)


def match_by_confidence(similarity: Matrix, scores: Sequence[float], threshold: float) -> list[tuple[int, int, float]]:
    """Match predictions in descending order of score, each to the most similar free true box (Visual-RFT, section 3.2).

    Args:
        similarity: similarity of each prediction and true box, (predictions, true boxes).
        scores: scores of the predictions; ties keep their order.
        threshold: similarity above which a pair can match.

    Returns:
        The matched pairs as (index of the prediction, index of the true box, similarity).
    """
    free = similarity.copy()
    pairs = []
    for i in np.argsort(-np.asarray(scores, np.float64), kind="stable"):
        if not free.shape[1]:
            break
        j = int(free[i].argmax())
        if free[i, j] > threshold:
            pairs.append((int(i), j, float(free[i, j])))
            free[:, j] = -np.inf
    return pairs


def match_optimally(similarity: Matrix, threshold: float) -> list[tuple[int, int, float]]:
    """Maximise the number of pairs above `threshold`, then the sum of their similarities (Hungarian algorithm).

    Arguments and return value are those of `match_by_confidence`, without scores.
    """
    from scipy.optimize import linear_sum_assignment  # the import takes longer than most commands without a model

    counts = similarity > threshold
    worth = np.where(counts, 1 + min(similarity.shape) + similarity, 0.0)
    pairs = zip(*linear_sum_assignment(worth, maximize=True), strict=True)
    return [(int(i), int(j), float(similarity[i, j])) for i, j in pairs if counts[i, j]]


def matched_iou(overlaps: Matrix, scores: Sequence[float]) -> float:
    """Return the summed IoU of the pairs of `match_by_confidence`, over max(predictions, true boxes).

    Args:
        overlaps: IoU of each prediction and true box, (predictions, true boxes); pairs with IoU 0 never match.
        scores: scores of the predictions.

    Returns:
        A value in 0..1; 1 if there are neither predictions nor true boxes.
    """
    slots = max(overlaps.shape)
    pairs = match_by_confidence(overlaps, scores, 0.0)
    return sum(iou for _, _, iou in pairs) / slots if slots else 1.0
