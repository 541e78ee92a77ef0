"""What the teacher of visual self-distillation sees."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image, ImageFilter

from plainloop.methods import View
from vrft.types import Sample

DIMMED = 0.25
"""Contrast with the background that a dimmed surrounding keeps."""
BLUR = 4
"""Standard deviation of the blur, in pixels of images of 56 x 56."""
KNOWN_GREY = 128
"""Background of the images that the base was trained on."""


def privileged(sample: Sample, view: View, grey: int | None = KNOWN_GREY) -> Sample:
    """Return a sample whose image shows the true objects, and little or nothing of their surroundings.

    The image's median is its background. A spotlight replaces the surroundings with the background, the dimmed view
    takes most of their contrast away, and the blurred view smooths them. Boxes keep their places.

    Args:
        sample: a question about an image.
        view: what happens to the surroundings.
        grey: shift all pixels so that the background has this grey; None: leave the background as it is.
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
