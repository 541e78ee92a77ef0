"""Split records into training and held-out records, by shots or as a fold of the training records."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vrft.data.few_shot import choose_shots
from vrft.data.record import Record, category, image_key
from vrft.data.split_sources import OtherHeldOut
from vrft.errors import ConfigurationError


@dataclass(frozen=True)
class Selection:
    """The settings `data.shots`, `data.val_fraction` and `data.val_shots`, see `vrft.data.RecordData`."""

    shots: int | None
    val_fraction: float | None
    val_shots: int | None
    seed: int

    def __post_init__(self) -> None:
        """Raise ConfigurationError for invalid settings or combinations."""
        if self.val_fraction is not None and not 0 < self.val_fraction < 1:
            raise ConfigurationError(f"data.val_fraction: expected a number between 0 and 1, got {self.val_fraction}")
        if self.val_fraction is not None and self.val_shots is not None:
            raise ConfigurationError("data.val_shots: data.val_fraction holds out training images already")

    @property
    def holds_out(self) -> bool:
        """Whether training records are held out."""
        return self.val_fraction is not None or self.val_shots is not None

    @property
    def fold(self) -> str:
        """The setting that holds out training records, with its value."""
        if self.val_fraction is None:
            return f"data.val_shots={self.val_shots}"
        return f"data.val_fraction={self.val_fraction}"

    def check_held_out(self, given: bool, field: str) -> None:
        """Raise ConfigurationError unless exactly one of a held-out file and `val_fraction` is given.

        With `val_shots`, a held-out file is optional.
        """
        if self.val_shots is None and given == (self.val_fraction is not None):
            both = "; both are given: data.val_fraction=null uses the held-out samples" if given else ""
            raise ConfigurationError(f"data.{field}: expected either held-out samples or data.val_fraction{both}")

    def choose(
        self, train: list[Record], val: list[Record], usable: Callable[[Record], bool], needs_train: bool
    ) -> tuple[list[Record], list[Record], int]:
        """Hold out training records if configured, then choose shots from the rest.

        Returns:
            The training records, the held-out records, and the number of records that shots were chosen from.
        """
        if self.val_fraction is not None:
            train, val = split_by_image(train, self.val_fraction, self.seed)
        elif self.val_shots is not None:
            train, val = split_by_shots(train, self.val_shots, self.seed, usable)
        available = len(train)
        if needs_train and self.shots is not None:
            train = choose_shots(train, category, self.shots, self.seed, usable)
        return train, val, available


def split_by_image(records: Sequence[Record], val_fraction: float, seed: int) -> tuple[list[Record], list[Record]]:
    """Split into training and held-out records without common images. The number of held-out images is rounded up."""
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
    """Split into training and held-out records without common images, holding out `val_shots` of each category."""
    val = choose_shots(records, category, val_shots, f"{seed}/fold", usable, "data.val_shots")
    held_out = {image_key(record) for record in val}
    return [record for record in records if image_key(record) not in held_out], val


def unused_held_out(other: OtherHeldOut, count: str, fold: str, *, is_tested: bool) -> str:
    """Return a warning that a source's own held-out samples are not used.

    Args:
        other: the samples.
        count: their number in parentheses, or "" if it is unknown.
        fold: the setting that holds out training samples, with its value.
        is_tested: whether `test` uses them.
    """
    uses = " with ".join(filter(None, [f"{fold.partition('=')[0]}=null", other.setting]))
    until = " before `test`" if is_tested else ""
    return (
        f"data: {other.place}{count} isn't used{until}, because {fold} holds out training images instead; "
        f"{uses} uses it"
    )
