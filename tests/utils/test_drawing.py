"""Boxes drawn on the images of a question."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from vrft.types import Detection, Sample
from vrft.utils.drawing import GAP, MIN_SIDE, TRUTH, draw_images


@pytest.mark.parametrize(("place", "drawn"), [(0, 0), (1, 1), (None, 1)])
def test_boxes_are_drawn_on_one_of_two_images_even_if_it_is_the_same_object(place: int | None, drawn: int) -> None:
    box = Detection((10, 10, 30, 30), "cat", None)
    sample = Sample(0, (Image.new("RGB", (40, 40)),) * 2, 0, "cat", (box,), image_index=place)
    pixels = np.asarray(draw_images(sample, [(sample.target, TRUTH)]))  # type: ignore[list-item]
    halves = pixels[:, : MIN_SIDE + GAP], pixels[:, MIN_SIDE + GAP :]
    assert [(half == TRUTH).all(-1).any() for half in halves] == [i == drawn for i in range(2)]
