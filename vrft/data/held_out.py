"""Holding out a part of the training records."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from vrft.data.few_shot import choose_shots
from vrft.data.record import Record, category, image_key


def split_by_image(records: Sequence[Record], val_fraction: float, seed: int) -> tuple[list[Record], list[Record]]:
    """Split into train and held-out records without common images, rounding the held-out images up."""
    images = list(dict.fromkeys(map(image_key, records)))
    random.Random(f"{seed}/split").shuffle(images)
    held_out = {*images[: -int(-len(images) * val_fraction // 1)]}
    return (
        [record for record in records if image_key(record) not in held_out],
        [record for record in records if image_key(record) in held_out],
    )


def split_by_shots(
    records: Sequence[Record], val_shots: int, seed: int, usable: Callable[[Record], bool]
) -> tuple[list[Record], list[Record]]:
    """Split into train and held-out records without common images, holding out `val_shots` of each category."""
    val = choose_shots(records, category, val_shots, f"{seed}/fold", usable, "data.val_shots")
    held_out = {image_key(record) for record in val}
    return [record for record in records if image_key(record) not in held_out], val
