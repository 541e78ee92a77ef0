"""An order of boxes with equal scores that does not depend on the order of the data."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from vrft.evaluators.average_precision import Array
from vrft.types import Sample

Keys = NDArray[np.uint64]


def tie_key(sample: Sample) -> int:
    """Return a number of 64 bits from the pixels of an image and the question about it."""
    digest = hashlib.blake2b(sample.image.tobytes(), digest_size=8, key=sample.query.encode(errors="replace")[:64])
    return int.from_bytes(digest.digest(), "little")


def break_ties(scores: Array, keys: Keys) -> Array:
    """Return scores in the same order but without ties; untied scores stay as they are.

    Evaluation code resolves ties by the order of image ids. Here, equal scores are ordered by `keys`, boxes with one
    key by their position, and each becomes the next smaller float64 after the one before it. The results file has
    these scores, so every tool computes the same numbers from it.

    Args:
        scores: scores from 0 (N,).
        keys: a key for each score (N,).

    >>> break_ties(np.array([0.5, 0.5, 0.25]), np.array([7, 3, 5], np.uint64)).tolist()
    [0.49999999999999994, 0.5, 0.25]
    """
    places = np.arange(len(scores))
    order = np.lexsort((places, keys, -scores))
    # positive floats are ordered like their bits, which count the representable numbers; adding 0.0 turns -0.0 into 0.0
    bits = (scores[order] + 0.0).view(np.int64)
    bits = np.minimum.accumulate(bits + places) - places
    bits = np.maximum(bits, places[::-1])  # ties at 0 go upwards
    unique = np.empty_like(scores)
    unique[order] = bits.view(np.float64)
    return unique


def without_ties(table: Array, keys: Keys) -> Array:
    """Return a table of results (N, 7) whose scores differ, see `break_ties`."""
    table = table.copy()
    table[:, 5] = break_ties(np.ascontiguousarray(table[:, 5]), keys)
    return table


def tied_share(table: Array) -> float:
    """Return the share of boxes in a table (N, 7) whose score another box of the same category has.

    Average precision sorts the boxes of one category over all images, so equal scores of two categories are no tie.
    """
    if not len(table):
        return 0.0
    _, counts = np.unique(table[:, 5:7], axis=0, return_counts=True)
    return float(counts[counts > 1].sum() / len(table))
