"""What data with boxes of categories has in common: which are asked for, and prompts for what is not there."""

from __future__ import annotations

import heapq
import random
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from vrft.data.files import brief, decode_json, read_bytes, require_file
from vrft.data.records import BadRecords, Record, RecordData, Split
from vrft.data.splits import Categories, category_names
from vrft.errors import ConfigurationError

ANNOTATED, ALL = "annotated", "all"


class CategoryData(RecordData):
    """Images with boxes of categories. A subclass reads them, and says what is not in them."""

    def __init__(
        self,
        categories: Categories = None,
        val_categories: Categories = None,
        val_queries: str = ANNOTATED,
        negatives: float = 0.0,
        **kwargs: Any,
    ) -> None:
        """What is asked for.

        Args:
            categories: names of the categories to ask for, or a list of `vrft.data.splits`; default: all.
            val_categories: the same for held-out images; default: `categories`.
            val_queries: which of them a held-out image is asked for: those that are `annotated` in it, which keeps a
                model from finding what is not there; `all`; or those that a file names, as `PresenceEvaluator` writes
                it: {"image id": ["name", ...]}.
            negatives: training prompts that ask for what is not there, per prompt that does not.
            kwargs: see `RecordData`.
        """
        super().__init__(**kwargs)
        if negatives < 0:
            raise ConfigurationError(f"data.negatives: expected at least 0, got {negatives}")
        if val_categories is not None and self.val_fraction is not None:
            raise ConfigurationError("data.val_categories: data.val_fraction holds out prompts for the same categories")
        if val_queries != ANNOTATED and self.val_fraction is not None:
            raise ConfigurationError("data.val_queries: expected a file of held-out images, not data.val_fraction")
        if val_queries not in (ANNOTATED, ALL):
            require_file("val_queries", Path(val_queries), "annotated, all or a map of categories by image")
        self.negatives, self.val_queries = negatives, val_queries
        self.categories: dict[Split, Sequence[str] | None] = {
            "train": category_names(categories),
            "val": category_names(categories if val_categories is None else val_categories, "data.val_categories"),
        }

    def select(self, split: Split, known: Sequence[str], source: object) -> list[str]:
        """Names of the categories to ask for, in the order of `known`.

        Raises:
            ConfigurationError: one of them is not in `source`.
        """
        wanted = self.categories[split]
        if unknown := sorted(set(wanted or ()).difference(known)):
            field = "val_categories" if split == "val" else "categories"
            raise ConfigurationError(
                f"data.{field}: {unknown[0]!r} is not in {source}; it has {', '.join(sorted(known)[:100])}"
            )
        return list(known) if wanted is None else [name for name in known if name in {*wanted}]

    def queries(
        self,
        split: Split,
        present: Mapping[int, Sequence[str]],
        wanted: Sequence[str],
        source: object,
        bad_records: BadRecords,
    ) -> dict[int, Sequence[str]]:
        """The categories that each image is asked for, by image id; nothing for images that are not asked about.

        Args:
            split: which images these are.
            present: the categories in each image.
            wanted: those that may be asked for.
            source: where `present` comes from, in messages.
            bad_records: gets what is wrong with a file of queries.
        """
        chosen: Mapping[int, Sequence[str]] = present
        if split == "val" and self.val_queries == ALL:
            chosen = dict.fromkeys(present, wanted)
        elif split == "val" and self.val_queries != ANNOTATED:
            chosen = read_map(Path(self.val_queries), present, source, bad_records)
        allowed = {*wanted}
        asked: dict[int, Sequence[str]] = {}
        for image in present:
            if names := [name for name in chosen.get(image, ()) if name in allowed]:
                asked[image] = names
        if split == "val":
            there = [(image, name) for image, names in present.items() for name in names if name in allowed]
            found = sum(name in asked.get(image, ()) for image, name in there)
            which = {ANNOTATED: "the categories annotated in them", ALL: "all categories"}
            rank_zero_info(
                f"{source}: {len(asked)} held-out images are asked for "
                f"{which.get(self.val_queries, f'the categories that {self.val_queries} names')}: "
                f"{sum(map(len, asked.values()))} questions"
            )
            if found < len(there):
                rank_zero_warn(
                    f"data.val_queries: {len(there) - found} of {len(there)} annotated categories of images are not "
                    "asked for; their objects count as missed"
                )
        return asked

    @abstractmethod
    def absent(self, images: set[int] | None) -> Iterator[tuple[int, str]]:
        """Images, of those given or all, and categories asked for in training that are known not to be in them."""

    @abstractmethod
    def absent_record(self, image_id: int, name: str) -> Record:
        """A record that asks for a category that is not there."""

    def extra_records(self, train: Sequence[Record]) -> list[Record]:
        count = round(self.negatives * len(train))
        rng = random.Random(f"{self.seed}/negatives")
        images = None if self.shots is None else {record.image_id for record in train}  # few-shot means few images
        pairs = enumerate(self.absent(images)) if count else ()
        chosen = heapq.nsmallest(count, pairs, key=lambda _: rng.random())
        return [self.absent_record(*pair) for _, pair in sorted(chosen)]


def read_map(
    path: Path, present: Mapping[int, Sequence[str]], source: object, bad_records: BadRecords
) -> dict[int, Sequence[str]]:
    """Names of categories by image id, {"image id": ["name", ...]}.

    What is wrong with an image's entry goes to `bad_records`, and the entry is left out.

    Raises:
        ConfigurationError: it is no such file.
    """
    try:
        content = decode_json(read_bytes(path))
    except ValueError as error:
        raise ConfigurationError(f"data.val_queries: {path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConfigurationError(
            f'data.val_queries: {path}: expected {{"image id": ["name", ...]}}, got {brief(content)}'
        )
    ids = {str(image): image for image in present}
    found: dict[int, Sequence[str]] = {}
    for key, names in content.items():
        if key not in ids:
            bad_records.add(f"{path}: {brief(key)}", f"{source} has no such image")
        elif not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            bad_records.add(f"{path}: {brief(key)}", f"expected a list of names, got {brief(names)}")
        else:
            found[ids[key]] = list(dict.fromkeys(names))
    return found
