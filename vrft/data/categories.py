"""Choose the categories to ask for in each image, and add negative prompts for absent categories."""

from __future__ import annotations

import heapq
import random
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from vrft.data.bad_records import BadRecords
from vrft.data.files import brief, decode_json, read_bytes, require_file
from vrft.data.record import Record, Split
from vrft.data.records import RecordData
from vrft.data.splits import Categories, category_names
from vrft.errors import ConfigurationError
from vrft.types import Id
from vrft.utils import notices
from vrft.utils.display import counted

ANNOTATED, ALL = "annotated", "all"


class CategoryData(RecordData):
    """Base class of images with boxes of categories. A subclass reads them and names absent categories."""

    noun = "category"

    def __init__(
        self,
        categories: Categories = None,
        val_categories: Categories = None,
        val_queries: str = ANNOTATED,
        negatives: float = 0.0,
        **kwargs: Any,
    ) -> None:
        """Set the categories to ask for.

        Args:
            categories: names of the categories to ask for, or a list of `vrft.data.splits`; default: all.
            val_categories: categories to ask for in held-out and test images; default: `categories`.
            val_queries: categories asked for in each held-out image: `annotated`, those annotated in it, which can't
                show false positives for absent categories; `all`; or a JSON file like that of `PresenceEvaluator`:
                {"image id": ["name", ...]}.
            negatives: training prompts for absent categories per prompt for a present one.
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
        self.categories["test"] = self.categories["val"]

    def file_categories(self) -> Sequence[str]:
        """Return the categories in the training files. Can be called before `setup`."""
        return self.ordered_categories()

    def evaluated_queries(self) -> str:
        """Return `val_queries`, or `annotated` if the evaluated images are a fold of the training images."""
        return ANNOTATED if self.evaluated_split() == "train" else self.val_queries

    def chosen_pairs(self) -> set[tuple[Id, str]] | None:
        """Return the pairs of image and category that `val_shots` chose; None if other images are evaluated."""
        if self.val_shots is None or self.evaluated_split() != "train":
            return None
        return {(record.image_id, record.query) for record in self.evaluated_set().records}

    def select(self, split: Split, known: Sequence[str], source: object) -> list[str]:
        """Return the names of the categories to ask for, in the order of `known`.

        Raises:
            ConfigurationError: a configured category is not in `source`.
        """
        wanted = self.categories[split]
        if unknown := sorted(set(wanted or ()).difference(known)):
            field = "categories" if split == "train" else "val_categories"
            raise ConfigurationError(
                f"data.{field}: {unknown[0]!r} is not in {source}; it has {', '.join(sorted(known)[:100])}"
            )
        return list(known) if wanted is None else [name for name in known if name in {*wanted}]

    def queries(
        self,
        split: Split,
        present: Mapping[Id, Sequence[str]],
        wanted: Sequence[str],
        source: object,
        bad_records: BadRecords,
    ) -> dict[Id, Sequence[str]]:
        """Return the categories to ask for by image id. Images with no category to ask for are left out.

        Args:
            split: split of the images.
            present: categories annotated in each image.
            wanted: categories that may be asked for.
            source: file of the annotations, for messages.
            bad_records: receives invalid entries of a file of queries.
        """
        chosen: Mapping[Id, Sequence[str]] = present
        if split != "train" and self.val_queries == ALL:
            chosen = dict.fromkeys(present, wanted)
        elif split != "train" and self.val_queries != ANNOTATED:
            chosen = read_map(Path(self.val_queries), present, source, bad_records, self.encoding)
        allowed = {*wanted}
        asked: dict[Id, Sequence[str]] = {}
        for image in present:
            if names := [name for name in chosen.get(image, ()) if name in allowed]:
                asked[image] = names
        without = "without boxes of these categories" if chosen is present else "not asked about"
        bad_records.passed_over[f"images {without}"] += len(present) - len(asked)
        if split != "train":
            annotated = [(image, name) for image, names in present.items() for name in names if name in allowed]
            missed = sum(name not in asked.get(image, ()) for image, name in annotated)
            which = {ANNOTATED: "the categories annotated in them", ALL: "all categories"}
            images = "test" if split == "test" else "held-out"
            questions = counted(sum(map(len, asked.values())), "question")
            rank_zero_info(
                f"{source}: {questions} about {counted(len(asked), f'{images} image')}, for "
                f"{which.get(self.val_queries, f'the categories named in {self.val_queries}')}"
            )
            if missed:
                notices.warn(
                    f"data.val_queries: {missed} of {len(annotated)} annotated pairs of image and category are not "
                    "asked for; their objects count as missed"
                )
        return asked

    @abstractmethod
    def absent(self, images: set[Id] | None) -> Iterator[tuple[Id, str]]:
        """Yield pairs of image id and training category known to be absent, of the given images or of all."""

    @abstractmethod
    def absent_record(self, image_id: Id, name: str) -> Record:
        """Return a record that asks for an absent category."""

    def extra_records(self, train: Sequence[Record]) -> list[Record]:
        count = round(self.negatives * len(train))
        rng = random.Random(f"{self.seed}/negatives")
        # negatives must not add images beyond the shots
        images = None if self.shots is None else {record.image_id for record in train}
        pairs = enumerate(self.absent(images)) if count else ()
        chosen = heapq.nsmallest(count, pairs, key=lambda _: rng.random())
        return [self.absent_record(*pair) for _, pair in sorted(chosen)]


def read_map(
    path: Path, present: Mapping[Id, Sequence[str]], source: object, bad_records: BadRecords, encoding: str
) -> dict[Id, Sequence[str]]:
    """Read category names by image id, {"image id": ["name", ...]}.

    Invalid entries are reported to `bad_records` and left out.

    Raises:
        ConfigurationError: the file has another format.
    """
    try:
        content = decode_json(read_bytes(path), encoding)
    except ValueError as error:
        raise ConfigurationError(f"data.val_queries: {path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConfigurationError(
            f'data.val_queries: {path}: expected {{"image id": ["name", ...]}}, got {brief(content)}'
        )
    ids = {str(image): image for image in present}
    if len(ids) < len(present):
        raise ConfigurationError(f"data.val_queries: {source} has image ids that are equal as text, e.g. 1 and '1'")
    found: dict[Id, Sequence[str]] = {}
    for key, names in content.items():
        if key not in ids:
            bad_records.add(f"{path}: {brief(key)}", f"{source} has no such image")
        elif not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            bad_records.add(f"{path}: {brief(key)}", f"expected a list of names, got {brief(names)}")
        else:
            found[ids[key]] = list(dict.fromkeys(names))
    return found
