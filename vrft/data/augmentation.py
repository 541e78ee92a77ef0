"""Augmentation of training images and their boxes with kornia."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from vrft.types import Detection, Sample

MIN_VISIBLE_SHARE = 0.5
"""Minimum share of each box that must stay inside the image; otherwise the sample is left unchanged."""

PIXEL_CENTRE = 0.5
"""Offset of kornia's coordinates, whose origin is the centre of the first pixel; the origin of boxes is its edge."""


def augment(sample: Sample, modules: Sequence[torch.nn.Module], key: tuple[int, int, int]) -> Sample:
    """Apply kornia's augmentations to a sample. Random numbers depend on `key` (seed, epoch, index) alone."""
    if not modules:
        return sample
    from kornia.augmentation import AugmentationSequential

    layers: Any = modules
    boxes = [detection.box for detection in sample.target] if isinstance(sample.target, tuple) else []
    pixels = torch.from_numpy(np.array(sample.image)).permute(2, 0, 1)[None] / 255  # (1, 3, height, width)
    corners = torch.tensor(boxes, dtype=torch.float32).view(1, -1, 4) - PIXEL_CENTRE
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))
        if boxes:
            moved, found = AugmentationSequential(*layers, data_keys=["input", "bbox_xyxy"])(pixels, corners)
        else:
            moved, found = AugmentationSequential(*layers, data_keys=["input"])(pixels), corners
    height, width = moved.shape[-2:]
    found = found + PIXEL_CENTRE
    clipped = found[0].clamp(min=0).minimum(torch.tensor([width, height, width, height]))
    if (_area(clipped) < MIN_VISIBLE_SHARE * _area(found[0])).any():
        return sample
    picture = (moved[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    target = sample.target
    if isinstance(target, tuple):
        target = tuple(
            Detection((box[0], box[1], box[2], box[3]), true.label)
            for box, true in zip(clipped.tolist(), target, strict=True)
        )
    return replace(sample, images=(Image.fromarray(picture),), target=target)


def _area(boxes: torch.Tensor) -> torch.Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1)
