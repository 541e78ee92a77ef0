"""The privileged views of the teacher in visual self-distillation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image, ImageFilter

from plainloop.methods import View
from vrft.types import Sample

DIMMED = 0.25
"""Share of the contrast with the background that dimmed surroundings keep."""
BLUR = 4
"""Standard deviation of the blur, in pixels of 56 x 56 images."""
KNOWN_GREY = 128
"""Grey of the background of the base's training images."""


def privileged(sample: Sample, view: View, grey: int | None = KNOWN_GREY) -> Sample:
    """Return a sample whose image shows the true objects, but little or nothing of their surroundings.

    The median of the image is its background. A spotlight replaces the surroundings by the background, the dimmed view
    removes most of their contrast, and the blurred view smooths them. Boxes are unchanged.

    Args:
        sample: a question about an image.
        view: change of the surroundings.
        grey: shift all pixels so that the background has this grey; None: don't shift.
    """
    pixels = np.asarray(sample.image).astype(float)
    background = np.median(pixels.reshape(-1, 3), 0)
    shown = np.zeros(pixels.shape[:2], bool)
    assert not isinstance(sample.target, str)
    for true in sample.target:
        x0, y0, x1, y1 = (round(value) for value in true.box)
        shown[max(y0 - 1, 0) : y1 + 1, max(x0 - 1, 0) : x1 + 1] = True
    seen = np.where(shown[..., None], pixels, surroundings(sample.image, pixels, background, view))
    seen += 0 if grey is None else grey - background
    return replace(sample, images=(Image.fromarray(seen.clip(0, 255).round().astype("uint8")),))


def surroundings(image: Image.Image, pixels: np.ndarray, background: np.ndarray, view: View) -> np.ndarray:
    if view == "spotlight":
        return np.broadcast_to(background, pixels.shape)
    if view == "dimmed":
        return background + DIMMED * (pixels - background)
    return np.asarray(image.filter(ImageFilter.GaussianBlur(BLUR))).astype(float)
