"""Compute average precision and calibration for many bootstrap samples of images from one matching of boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vrft.evaluators.average_precision import UNDEFINED, Array, Format, hotcoco_evaluation
from vrft.evaluators.calibration import NUM_BINS

THRESHOLDS = {"AP": slice(None), "AP50": slice(0, 1), "AP75": slice(5, 6)}
"""The IoU thresholds, of COCO's 10, over which a number is averaged."""

RECALLS = np.linspace(0, 1, 101)
EPSILON = np.spacing(1)


class Matches(NamedTuple):
    """The D boxes of a category in descending order of score, with T = 10 IoU thresholds and I images."""

    images: NDArray[np.int64]  # (D,)
    scores: Array  # (D,)
    right: Array  # (T, D), 1 for a box matched with a true box
    wrong: Array  # (T, D), 1 for an unmatched box; boxes that the benchmark ignores are 0 in both
    positives: Array  # (I,), number of true boxes to find


def resampled_precision(
    content: dict[str, Any], results: Array, format: Format, categories: Sequence[int], counts: Array
) -> dict[str, Array]:
    """Return AP, AP50 and AP75 over all areas for each of R samples of the images, `UNDEFINED` without true boxes.

    The values equal the benchmark's for data with repeated images: the repetitions of a box are adjacent in the order
    of scores, and interpolated precision does not depend on the positions between the first and the last repetition.
    Only the order of boxes of one image with equal scores may differ.

    Args:
        content: ground truth in COCO's or LVIS's tables, with numbers from 0 as ids.
        results: image, x, y, width, height, score, category of N boxes, (N, 7); all scores differ.
        format: rules of the matching.
        categories: numbers of the categories to average over.
        counts: number of times that each image occurs in each sample, (R, I).
    """
    found = matches(content, results, format, categories, counts.shape[1])
    each = np.stack([_precision(match, counts) for match in found], 1)  # (R, K, T)
    defined = each[:, :, 0] != UNDEFINED  # (R, K)
    known = defined.sum(1)
    numbers = {}
    for name, part in THRESHOLDS.items():
        sums = np.where(defined, each[:, :, part].mean(2), 0).sum(1)
        numbers[name] = np.where(known > 0, sums / np.maximum(known, 1), UNDEFINED)
    return numbers


def matches(
    content: dict[str, Any], results: Array, format: Format, categories: Sequence[int], images: int
) -> list[Matches]:
    """Match boxes under the rules of a benchmark, and return the matches of each category."""
    evaluation = hotcoco_evaluation(content, results, format)
    evaluation.params.cat_ids = [*categories]
    evaluation.params.area_rng, evaluation.params.area_rng_lbl = evaluation.params.area_rng[:1], ["all"]
    evaluation.evaluate()
    parts: dict[int, list[dict[str, Any]]] = {number: [] for number in categories}
    for part in evaluation.eval_imgs:
        if part is not None and part["category_id"] in parts:
            parts[part["category_id"]].append(part)
    return [_join(parts[number], images) for number in categories]


def _join(parts: Sequence[dict[str, Any]], images: int) -> Matches:
    positives = np.zeros(images)
    for part in parts:
        positives[part["image_id"]] += np.count_nonzero(~np.asarray(part["gtIgnore"], bool))
    boxes = [part for part in parts if part["dtScores"]]
    if not boxes:
        return Matches(np.zeros(0, np.int64), np.zeros(0), np.zeros((10, 0)), np.zeros((10, 0)), positives)
    scores = np.concatenate([part["dtScores"] for part in boxes])
    order = np.argsort(-scores, kind="stable")
    owners = np.repeat([part["image_id"] for part in boxes], [len(part["dtScores"]) for part in boxes])
    matched = np.concatenate([np.asarray(part["dtMatched"], bool) for part in boxes], 1)[:, order]
    ignored = np.concatenate([np.asarray(part["dtIgnore"], bool) for part in boxes], 1)[:, order]
    right, wrong = matched & ~ignored, ~matched & ~ignored
    return Matches(owners[order].astype(np.int64), scores[order], right.astype(float), wrong.astype(float), positives)


def resampled_calibration(
    content: dict[str, Any], results: Array, format: Format, categories: Sequence[int], counts: Array
) -> Array:
    """Return the calibration error of each of R samples of the images, (R,), `UNDEFINED` if no box counts.

    Arguments are those of `resampled_precision`, but scores may tie. See `vrft.evaluators.calibration`.
    """
    gaps, boxes = np.zeros((counts.shape[1], NUM_BINS)), np.zeros(counts.shape[1])  # (I, 10), (I,)
    for match in matches(content, results, format, categories, counts.shape[1]):
        counted = match.right[0] + match.wrong[0]  # (D,), at an IoU of 0.5
        bins = np.minimum((match.scores * NUM_BINS).astype(int), NUM_BINS - 1)
        np.add.at(gaps, (match.images, bins), match.right[0] - match.scores * counted)
        np.add.at(boxes, match.images, counted)
    known = counts @ boxes  # (R,)
    errors = np.abs(counts @ gaps).sum(1) / np.maximum(known, 1)
    return np.where(known > 0, errors, UNDEFINED)


def _precision(match: Matches, counts: Array) -> Array:
    """Return the average precision of one category by sample and threshold, (R, T)."""
    weights, positives = counts[:, match.images], counts @ match.positives  # (R, D), (R,)
    result = np.full((len(counts), len(match.right)), UNDEFINED)
    for r in np.flatnonzero(positives):
        result[r] = 0.0
        right, wrong = np.cumsum(match.right * weights[r], 1), np.cumsum(match.wrong * weights[r], 1)  # (T, D)
        recall, precision = right / positives[r], right / (right + wrong + EPSILON)
        precision = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
        for t in range(len(right)):
            at = np.searchsorted(recall[t], RECALLS, side="left")
            result[r, t] = precision[t, at[at < recall.shape[1]]].sum() / len(RECALLS)
    return result
