"""What data with boxes of categories has in common: which are asked for, and prompts for what is not there."""

from __future__ import annotations

import heapq
import random
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

from vrft.data.records import Part, Record, RecordData
from vrft.data.splits import Categories, category_names
from vrft.errors import ConfigurationError


class CategoryData(RecordData):
    """Images with boxes of categories. A subclass reads them, and says what is not in them."""

    def __init__(
        self,
        categories: Categories = None,
        val_categories: Categories = None,
        negatives: float = 0.0,
        **kwargs: Any,
    ) -> None:
        """What is asked for.

        Args:
            categories: names of the categories to ask for, or a list of `vrft.data.splits`; default: all.
            val_categories: the same for held-out images; default: `categories`.
            negatives: training prompts that ask for what is not there, per prompt that does not.
            kwargs: see `RecordData`.
        """
        super().__init__(**kwargs)
        if negatives < 0:
            raise ConfigurationError(f"data.negatives: expected at least 0, got {negatives}")
        if val_categories is not None and self.val_fraction is not None:
            raise ConfigurationError("data.val_categories: data.val_fraction holds out prompts for the same categories")
        self.negatives = negatives
        self.categories: dict[Part, Sequence[str] | None] = {
            "train": category_names(categories),
            "val": category_names(categories if val_categories is None else val_categories, "data.val_categories"),
        }

    def select(self, part: Part, known: Sequence[str], source: object) -> list[str]:
        """Names of the categories to ask for, in the order of `known`.

        Raises:
            ConfigurationError: one of them is not in `source`.
        """
        wanted = self.categories[part]
        if unknown := sorted(set(wanted or ()).difference(known)):
            field = "val_categories" if part == "val" else "categories"
            raise ConfigurationError(
                f"data.{field}: {unknown[0]!r} is not in {source}; it has {', '.join(sorted(known)[:100])}"
            )
        return list(known) if wanted is None else [name for name in known if name in {*wanted}]

    @abstractmethod
    def absent(self, images: set[int] | None) -> Iterator[tuple[int, str]]:
        """Images, of those given or all, and categories asked for in training that are known not to be in them."""

    @abstractmethod
    def absent_record(self, image_id: int, name: str) -> Record:
        """A record that asks for a category that is not there."""

    def further_records(self, train: Sequence[Record]) -> list[Record]:
        count = round(self.negatives * len(train))
        rng = random.Random(f"{self.seed}/negatives")
        images = None if self.shots is None else {record.image_id for record in train}  # few-shot means few images
        pairs = enumerate(self.absent(images)) if count else ()
        chosen = heapq.nsmallest(count, pairs, key=lambda _: rng.random())
        return [self.absent_record(*pair) for _, pair in sorted(chosen)]
