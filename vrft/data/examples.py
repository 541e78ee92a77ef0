"""Examples in the prompt: labelled training records that are shown, with their answers, before each question."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Collection, Hashable, Sequence

from vrft.data.record import Record, category, source_key
from vrft.errors import ConfigurationError


def image_keys(records: Sequence[Record]) -> set[Hashable]:
    """Return the keys of all images of records."""
    return {source_key(image) for record in records for image in record.images}


class ExamplePool:
    """The training records that examples are chosen from.

    A choice depends on the seed, its name and the images that it must not have, so that it is equal on any number of
    ranks and after resuming. It takes one record of each category in turn, in an order drawn for the choice; all have
    different images. Records without objects are no examples.
    """

    def __init__(self, records: Sequence[Record], count: int, seed: int) -> None:
        """Set the records and the number of examples in each prompt.

        Raises:
            ConfigurationError: there are fewer images.
        """
        self.records, self.count, self.seed = [record for record in records if record.target], count, seed
        self.num_images = len(image_keys(self.records))
        if self.num_images < count:
            raise ConfigurationError(
                f"data.examples: expected at most {self.num_images}, the number of labelled training images, got {count}"
            )

    def check_batches(self, prompts: int) -> None:
        """Raise ConfigurationError if a batch of so many prompts may leave too few images for examples."""
        left = self.num_images - min(prompts, self.num_images)
        if left < self.count:
            raise ConfigurationError(
                f"data.examples: a batch of {prompts} prompts may be about all but {left} of {self.num_images} labelled "
                f"training images, and examples need {self.count} others; expected smaller batches or fewer examples"
            )

    def choose(self, name: str, excluded: Collection[Hashable]) -> list[Record]:
        """Return the examples of a choice.

        Args:
            name: what the choice is for.
            excluded: keys of images that it must not have.

        Raises:
            ConfigurationError: too few other images are left.
        """
        rng = random.Random(f"{self.seed}/examples/{name}")
        by_category: dict[str, list[Record]] = defaultdict(list)
        for record in self.records:
            by_category[category(record)].append(record)
        names = [*by_category]
        rng.shuffle(names)
        for found in by_category.values():
            rng.shuffle(found)
        chosen: list[Record] = []
        used = {*excluded}
        while len(chosen) < self.count and any(by_category.values()):
            for label in names[: len(names) if by_category else 0]:
                usable = next_unused(by_category[label], used)
                if usable is not None and len(chosen) < self.count:
                    chosen.append(usable)
                    used |= image_keys([usable])
        if len(chosen) < self.count:
            raise ConfigurationError(
                f"data.examples: expected at most {len(chosen)}, the number of labelled training images that no question "
                f"of the {name} is about, got {self.count}"
            )
        return chosen


def next_unused(records: list[Record], used: Collection[Hashable]) -> Record | None:
    """Remove records from the end of a list up to one whose images are unused, and return it; None if there is none."""
    while records:
        record = records.pop()
        if not image_keys([record]) & {*used}:
            return record
    return None
