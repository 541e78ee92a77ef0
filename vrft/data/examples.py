"""Few-shot examples: labelled training records that the prompt shows, with their answers, before each question."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Collection, Hashable, Iterator, Sequence

from vrft.data.record import Record, category, source_key
from vrft.errors import ConfigurationError


def image_keys(records: Sequence[Record]) -> set[Hashable]:
    """Return the keys of all images of records."""
    return {source_key(image) for record in records for image in record.images}


def most_images(records: Sequence[Record]) -> int:
    """Return the largest number of images of a record."""
    return max((record.num_images for record in records), default=0)


class ExamplePool:
    """The training records that examples are chosen from.

    A choice depends on the seed, its name and the excluded images alone, so that it is the same on any number of ranks
    and after resuming. It takes records from the categories in turn, in an order drawn for the choice, each with
    another image. Records without objects are never chosen.
    """

    def __init__(self, records: Sequence[Record], count: int, seed: int) -> None:
        """Set the records and the number of examples in each prompt.

        Raises:
            ConfigurationError: there are fewer images than examples.
        """
        self.count, self.seed = count, seed
        labelled = [record for record in records if record.target]
        self.by_category: dict[str, list[Record]] = defaultdict(list)
        for record in labelled:
            self.by_category[category(record)].append(record)
        self.categories = sorted(self.by_category)
        self.num_images = len(image_keys(labelled))
        self.most_asked = most_images(records)
        self.most_shown = most_images(labelled)
        if self.num_images < count:
            raise ConfigurationError(
                f"data.examples: expected at most {self.num_images}, its labelled training images, got {count}"
            )

    def check_batches(self, prompts: int) -> None:
        """Raise ConfigurationError if a batch of `prompts` prompts may leave too few images for examples."""
        left = self.num_images - min(prompts * self.most_asked, self.num_images)
        needed = self.count * self.most_shown
        if left < needed:
            raise ConfigurationError(
                f"data.examples: a batch of {prompts} prompts may be about all but {left} of the {self.num_images} "
                f"labelled training images, and {self.count} examples need {needed} other images; expected smaller "
                "batches or fewer examples"
            )

    def choose(self, name: str, excluded: Collection[Hashable]) -> list[Record]:
        """Return the examples of a choice.

        Args:
            name: name of the choice, which seeds it.
            excluded: keys of images that must not be chosen.

        Raises:
            ConfigurationError: too few other images are left.
        """
        rng = random.Random(f"{self.seed}/examples/{name}")
        names = rng.sample(self.categories, len(self.categories))
        drawn: dict[str, Iterator[Record]] = {}
        used = {*excluded}
        chosen: list[Record] = []
        while names and len(chosen) < self.count:
            label = names.pop(0)
            if label not in drawn:
                drawn[label] = iter(rng.sample(self.by_category[label], len(self.by_category[label])))
            record = next((found for found in drawn[label] if not image_keys([found]) & used), None)
            if record is not None:
                chosen.append(record)
                used |= image_keys([record])
                names.append(label)
        if len(chosen) < self.count:
            raise ConfigurationError(
                f"data.examples: expected at most {len(chosen)}, the labelled training images that no question of "
                f"{name} is about, got {self.count}"
            )
        return chosen
