"""Grey values of any depth as 8 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

DEPTHS = (8, 10, 12, 14, 16, 24, 32)
"""Bits per pixel of cameras and files."""

MAX_FRACTION = 1.5
"""Largest value of float images in 0..1, which sharpening and resampling may exceed."""


def eight_bits(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Convert grey values (height, width) to 8 bits.

    Files don't say how many of their bits a camera used, so the depth is the smallest of `DEPTHS` that holds the
    brightest pixel: a ramp looks the same with 8, 12 or 16 bits. Floats up to `MAX_FRACTION` are taken as 0..1.

    Raises:
        ValueError: a value is negative, infinite or NaN, so that no depth fits.

    >>> eight_bits(np.array([[0, 2048, 4095]])).tolist()
    [[0, 128, 255]]
    >>> eight_bits(np.array([[0.0, 0.5, 1.0]])).tolist()
    [[0, 127, 255]]
    """
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise ValueError("pixels are infinite or not a number; convert the image to 8 bits")
    if values.dtype.kind == "f" and high <= MAX_FRACTION and low >= 1 - MAX_FRACTION:
        return np.asarray(values.clip(0, 1) * 255).astype(np.uint8)
    if low < 0:
        raise ValueError(f"pixels from {low:g} to {high:g}, expected none below 0; convert the image to 8 bits")
    depth = next((bits for bits in DEPTHS if high < 2**bits), None)
    if depth is None:
        raise ValueError(f"pixels up to {high:g}, expected at most 32 bits; convert the image to 8 bits")
    return np.asarray(values // 2 ** (depth - 8)).astype(np.uint8)
