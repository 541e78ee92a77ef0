"""Order boxes with equal scores independently of the order of the data, and warn about ties."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vrft.evaluators.average_precision import Array
from vrft.evaluators.confidence import Confidence
from vrft.types import Detection, Sample
from vrft.utils.display import counted

Keys = NDArray[np.uint64]

MAX_TIED_SHARE = 0.5
"""Warn if a larger share of boxes has tied scores."""

TIES: dict[Confidence, str] = {
    "answer": "answer ranks by stated confidences alone; product ranks by token probabilities too",
    "logprob": "logprob ranks by token probabilities, which are the same or not known; product ranks by stated "
    "confidences too",
    "product": "product ranks by stated confidences and token probabilities already, which are the same or not known",
}
"""Why scores tie, and a setting that may help, by `confidence`."""


def tie_key(sample: Sample) -> int:
    """Return a 64-bit hash of the pixels of a sample's images and its question."""
    digest = hashlib.blake2b(digest_size=8, key=sample.query.encode(errors="replace")[:64])
    for image in sample.images:
        digest.update(image.tobytes())
    return int.from_bytes(digest.digest(), "little")


def break_ties(scores: Array, keys: Keys) -> Array:
    """Return scores without ties but with the same order of different scores. Untied scores are unchanged.

    Evaluation code resolves ties by the order of image ids. Here, equal scores are ordered by `keys`, then by index,
    and each is decreased to the next float64 below its predecessor. The results file has these scores, so that every
    tool computes the same numbers from it.

    Args:
        scores: scores of at least 0, (N,).
        keys: a key for each score, (N,).

    >>> break_ties(np.array([0.5, 0.5, 0.25]), np.array([7, 3, 5], np.uint64)).tolist()
    [0.49999999999999994, 0.5, 0.25]
    """
    places = np.arange(len(scores))
    order = np.lexsort((places, keys, -scores))
    # the bits of non-negative floats, read as integers, enumerate the floats in order; adding 0.0 turns -0.0 into 0.0
    bits = (scores[order] + 0.0).view(np.int64)
    bits = np.minimum.accumulate(bits + places) - places
    bits = np.maximum(bits, places[::-1])  # ties at 0 are increased instead, because scores must not be negative
    unique = np.empty_like(scores)
    unique[order] = bits.view(np.float64)
    return unique


def without_ties(table: Array, keys: Keys) -> Array:
    """Return a table of results, (N, 7), without ties, see `break_ties`."""
    table = table.copy()
    table[:, 5] = break_ties(np.ascontiguousarray(table[:, 5]), keys)
    return table


def tied_share(table: Array) -> float:
    """Return the share of boxes in a table, (N, 7), with the same score as another box of their category.

    Average precision sorts boxes within a category, so equal scores in different categories are not ties.
    """
    if not len(table):
        return 0.0
    _, counts = np.unique(table[:, 5:7], axis=0, return_counts=True)
    return float(counts[counts > 1].sum() / len(table))


def score_warnings(boxes: Sequence[Detection], tied: float, confidence: Confidence, field: str) -> list[str]:
    """Return warnings about missing or tied scores, which make the order of boxes arbitrary.

    Args:
        boxes: the boxes of all answers.
        tied: share of boxes with tied scores, see `tied_share`.
        confidence: score of a box.
        field: field of the evaluator, for messages.
    """
    warnings = []
    if unscored := sum(box.score is None for box in boxes):
        count = counted(len(boxes), "box")
        warnings.append(f"{unscored} of {count} without a stated confidence, which counts as 1.0")
    if boxes and tied > MAX_TIED_SHARE:
        warnings.append(
            f"{tied:.0%} of the boxes share their score with others of their category and are ordered by chance (a "
            f"hash of the image), which average precision depends on; {field}.confidence={TIES[confidence]}"
        )
    return warnings
