"""Augmentation: boxes are transformed along, and the same seed gives the same image."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.helpers.coco import coco_data
from tests.helpers.data import samples_of
from vrft.data.augmentation import augment
from vrft.data.datasets.scenes import draw_scene
from vrft.types import Detection, Sample


def flip() -> list[torch.nn.Module]:
    from kornia.augmentation import RandomHorizontalFlip  # here, so that only workers with these tests import it

    return [RandomHorizontalFlip(p=1.0)]


def affine(**settings: Any) -> list[torch.nn.Module]:
    from kornia.augmentation import RandomAffine

    return [RandomAffine(degrees=0.0, p=1.0, **settings)]


def test_boxes_follow_a_flip() -> None:
    image = Image.new("RGB", (40, 30))
    image.paste("red", (5, 10, 15, 20))
    sample = Sample(0, (image,), 0, "x", (Detection((5, 10, 15, 20), "x"), Detection((0, 0, 40, 30), "x")))
    moved = augment(sample, flip(), (0, 0, 0))
    assert [tuple(map(round, box.box)) for box in moved.target] == [(25, 10, 35, 20), (0, 0, 40, 30)]
    assert moved.image.getpixel((30, 15)) == (255, 0, 0)
    assert moved.image.getpixel((10, 15)) == (0, 0, 0)


def test_augmentation_depends_on_seed_epoch_and_index_alone(tmp_path: Path) -> None:
    scene, boxes = draw_scene(random.Random(1))
    sample = Sample(0, (scene,), 0, "x", tuple(boxes))
    modules = affine(translate=(0.1, 0.1), scale=(0.9, 1.1))
    first, same, other = (augment(sample, modules, (0, epoch, 0)) for epoch in (3, 3, 4))
    assert first.target == same.target != other.target
    assert np.array_equal(np.asarray(first.image), np.asarray(same.image))
    state = torch.random.get_rng_state()
    augment(sample, modules, (0, 1, 0))
    assert torch.equal(state, torch.random.get_rng_state())  # the global generator is unchanged


def test_a_sample_whose_box_would_leave_the_image_stays_unchanged() -> None:
    sample = Sample(0, (Image.new("RGB", (40, 40)),), 0, "x", (Detection((0, 0, 8, 8), "x"),))
    away = affine(translate=(0.9, 0.9))
    kept = [augment(sample, away, (0, 0, index)) for index in range(20)]
    assert any(other is sample for other in kept)
    for other in kept:
        x0, y0, x1, y1 = other.target[0].box
        assert (x1 - x0) * (y1 - y0) >= 32  # half of the box's area


def test_only_training_is_augmented(tmp_path: Path) -> None:
    train, val = samples_of(coco_data(tmp_path, augmentation=flip()), tmp_path)
    assert [round(v) for v in train[0].target[0].box] == [36, 2, 39, 6]
    assert val[0].target[0].box == (1, 2, 4, 6)
