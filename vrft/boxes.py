"""Boxes: coordinate frames, IoU and matching. Boxes are x0, y0, x1, y1; a box with x0 >= x1 or y0 >= y1 has no area."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vrft.types import Frame

Box = tuple[float, float, float, float]


def to_frame(box: Box, image_size: tuple[int, int], frame: Frame) -> tuple[int, int, int, int]:
    """Pixels of an image of `image_size` (width, height) -> integers of the model's frame, rounded to the nearest.

    A box thinner than one unit gets one, since a box without area can't be an answer.
    """
    x0, x1 = _interval(box[0], box[2], image_size[0], frame.width)
    y0, y1 = _interval(box[1], box[3], image_size[1], frame.height)
    return x0, y0, x1, y1


def _interval(low: float, high: float, size: int, units: int) -> tuple[int, int]:
    start = min(round(low * units / size), units - 1)
    return start, max(round(high * units / size), start + 1)


def from_frame(box: Sequence[float], image_size: tuple[int, int], frame: Frame) -> Box:
    """The model's frame -> pixels of an image of `image_size` (width, height)."""
    (width, height), (x0, y0, x1, y1) = image_size, box
    return x0 * width / frame.width, y0 * height / frame.height, x1 * width / frame.width, y1 * height / frame.height


def iou_matrix(a: Sequence[Box], b: Sequence[Box]) -> NDArray[np.float64]:
    """Intersection over union of every pair, (len(a), len(b)). Boxes without area have IoU 0 with everything."""
    p, q = np.asarray(a, np.float64).reshape(-1, 1, 4), np.asarray(b, np.float64).reshape(1, -1, 4)
    overlap = np.minimum(p[..., 2:], q[..., 2:]) - np.maximum(p[..., :2], q[..., :2])
    intersection = overlap.clip(0).prod(-1)
    union = sum((x[..., 2:] - x[..., :2]).clip(0).prod(-1) for x in (p, q)) - intersection
    return np.divide(intersection, union, out=np.zeros(np.shape(union)), where=union > 0)


def match_by_confidence(
    predicted: Sequence[Box], scores: Sequence[float], true: Sequence[Box], threshold: float
) -> list[tuple[int, int, float]]:
    """Greedy matching as in Visual-RFT, section 3.2: by falling score, each prediction takes the best free true box.

    Returns (prediction, true box, IoU) of the pairs whose IoU is above `threshold`. Equal scores keep their order.
    """
    ious = iou_matrix(predicted, true)
    pairs = []
    for i in np.argsort(-np.asarray(scores, np.float64), kind="stable"):
        if not true:
            break
        j = int(ious[i].argmax())
        if ious[i, j] > threshold:
            pairs.append((int(i), j, float(ious[i, j])))
            ious[:, j] = -1.0
    return pairs
