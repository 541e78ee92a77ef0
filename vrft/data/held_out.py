"""Holding out a part of the training records."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from vrft.data.few_shot import choose_shots
from vrft.data.record import Record, category, image_key
from vrft.data.split_sources import OtherHeldOut


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


def unused_held_out(other: OtherHeldOut, count: str, fold: str, *, is_tested: bool) -> str:
    """Return a warning that a source's own held-out samples are not used.

    Args:
        other: the samples.
        count: their number in parentheses, or "" if it is not known.
        fold: the setting that holds out training samples, with its value.
        is_tested: whether `test` uses them.
    """
    uses = " with ".join(filter(None, [f"{fold.partition('=')[0]}=null", other.setting]))
    until = " before `test`" if is_tested else ""
    return (
        f"data: {other.place}{count} isn't used{until}, because {fold} holds out training images instead; "
        f"{uses} uses it"
    )
