"""The ground truth of an evaluation: boxes in COCO's or LVIS's format, numbered from 0.

An id may be any integer or string in JSON. The libraries that compute the numbers store ids as float64 or int64, so
images and categories are numbered in the order of their ids, which is the order in which pycocotools resolves equal
scores.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from vrft.data.files import UTF8, brief, decode_json, is_number
from vrft.data.formats.coco_entries import require_each_part_once
from vrft.data.formats.coco_fields import id_order, is_json_id, read_area, read_flag, values_reason
from vrft.data.formats.other_formats import format_hint, format_of, format_of_json
from vrft.errors import ConfigurationError
from vrft.evaluators.average_precision import BACKENDS, COLUMNS, Array, Backend, Curves, Format
from vrft.evaluators.calibration import Calibration, calibration
from vrft.types import Id
from vrft.utils.display import counted
from vrft.utils.regular_files import read_regular

LVIS_LISTS = ("neg_category_ids", "not_exhaustive_category_ids")
"""LVIS's lists of categories that are absent from an image, or not annotated exhaustively."""


class Category(NamedTuple):
    """A category with all its ids. Merged files may have several ids for a name."""

    ids: tuple[Id, ...]
    name: str
    frequency: str = ""


class Truth:
    """Images, categories and true boxes. `content` has COCO's tables with numbers as ids."""

    def __init__(self, content: Any, source: str, field: str = "annotations", skip_bad: bool = False) -> None:
        """Check and number an annotation file.

        Args:
            content: `images`, `annotations` and `categories` of COCO or LVIS.
            source: name of the file, for messages.
            field: setting that names the file, for messages.
            skip_bad: leave out invalid images and annotations, and count them in `warnings`.

        Raises:
            ConfigurationError: the content has another format, or has an invalid entry.
        """
        self.source, self.name = source, f"{field}: {source}"
        self.bad: list[str] | None = [] if skip_bad else None
        self.warnings: list[str] = []
        images, annotations, entries = self._tables(content)
        self.categories = self._categories(entries)
        self.category_numbers = {category.name: k for k, category in enumerate(self.categories)}
        self.numbers_of_ids = {key: k for k, category in enumerate(self.categories) for key in category.ids}
        kept = self._images(images)
        self.image_ids = sorted(kept, key=id_order)
        self.image_numbers = {key: number for number, key in enumerate(self.image_ids)}
        self.content = {
            "images": [self._numbered_image(*kept[key]) for key in self.image_ids],
            "annotations": self._annotations(annotations, {*kept}),
            "categories": [{"id": k, "name": category.name} for k, category in enumerate(self.categories)],
        }
        if self.bad:
            self.warnings.append(
                f"{self.name}: left out: {counted(len(self.bad), 'invalid entry')}, e.g. {self.bad[0]}"
            )

    @classmethod
    def read(cls, path: Path, field: str = "annotations", skip_bad: bool = False, encoding: str = UTF8) -> Truth:
        """Read an annotation file, see the constructor."""
        return cls(read_content(path, field, encoding), str(path), field, skip_bad)

    def _tables(self, content: Any) -> list[list[Any]]:
        tables = content if isinstance(content, dict) else {}
        for key in ("images", "annotations", "categories"):
            if not isinstance(tables.get(key), list):
                raise ConfigurationError(
                    f"{self.name} is not a COCO or LVIS annotation file: expected lists of images, annotations and "
                    f"categories; {key} is {brief(tables.get(key))}{format_hint(format_of_json(content))}"
                )
        return [tables["images"], tables["annotations"], tables["categories"]]

    def _report(self, location: str, reason: str) -> None:
        if self.bad is None:
            raise ConfigurationError(f"{self.name}: {location}: {reason}")
        self.bad.append(f"{location}: {reason}")

    def _categories(self, entries: Sequence[Any]) -> list[Category]:
        """Return the categories in the order of their first ids. Categories with the same name are merged."""
        names: dict[Id, tuple[str, str]] = {}
        for i, entry in enumerate(entries):
            location = f"{self.name}: categories[{i}]"
            key, name = (entry.get("id"), entry.get("name")) if isinstance(entry, dict) else (None, None)
            if not is_json_id(key):
                raise ConfigurationError(f"{location}.id: expected a whole number or text, got {brief(key)}")
            if not isinstance(name, str):
                raise ConfigurationError(f"{location}.name: expected text, got {brief(name)}")
            if names.get(key, (name, ""))[0] != name:  # merged files repeat equal entries
                raise ConfigurationError(f"{location}.id: {key!r} appears twice, as {names[key][0]!r} and {name!r}")
            names[key] = name, entry.get("frequency", "")
        merged: dict[str, Category] = {}
        for key in sorted(names, key=id_order):
            name, frequency = names[key]
            known = merged.setdefault(name, Category((), name, frequency))
            merged[name] = known._replace(ids=(*known.ids, key))
        for category in merged.values():
            if len(category.ids) > 1:
                ids = ", ".join(map(repr, category.ids))
                self.warnings.append(f"{self.name}: {category.name!r} has the ids {ids}; they are one category")
        return [*merged.values()]

    def _images(self, entries: Sequence[Any]) -> dict[Id, tuple[int, dict[str, Any]]]:
        """Return the index and the entry of each valid image by id."""
        ids = [entry.get("id") if isinstance(entry, dict) else None for entry in entries]
        seen = Counter(key for key in ids if is_json_id(key))
        kept = {}
        for i, (key, entry) in enumerate(zip(ids, entries, strict=True)):
            if not is_json_id(key):
                self._report(f"images[{i}].id", f"expected a whole number or text, got {brief(key)}")
            elif seen[key] > 1:
                self._report(f"images[{i}].id", f"{key!r} appears {seen[key]} times")
            else:
                kept[key] = i, entry
        return kept

    def _numbered_image(self, i: int, entry: Mapping[str, Any]) -> dict[str, Any]:
        lists = {}
        for field in LVIS_LISTS:
            ids = entry.get(field)
            if ids is not None and not (isinstance(ids, list) and all(map(is_json_id, ids))):
                raise ConfigurationError(f"{self.name}: images[{i}].{field}: expected a list of ids, got {brief(ids)}")
            # a file reduced to some categories may still list the others here
            lists[field] = [self.numbers_of_ids[key] for key in ids or () if key in self.numbers_of_ids]
        return {"id": self.image_numbers[entry["id"]], **lists}

    def _annotations(self, entries: Sequence[Any], images: set[Id]) -> list[dict[str, Any]]:
        """Return the valid boxes, numbered from 1, because pycocotools takes a match with id 0 for no match."""
        kept: list[dict[str, Any]] = []
        for i, entry in enumerate(entries):
            reason = annotation_reason(entry, images, self.numbers_of_ids.keys())
            if reason is not None:
                self._report(f"annotations[{i}]", reason)
                continue
            x, y, w, h = entry["bbox"]
            area = read_area(entry.get("area"))
            kept.append(
                {
                    "id": len(kept) + 1,
                    "image_id": self.image_numbers[entry["image_id"]],
                    "category_id": self.numbers_of_ids[entry["category_id"]],
                    "bbox": [x, y, w, h],
                    "area": w * h if area is None else area,
                    "iscrowd": read_flag(entry.get("iscrowd")),
                    "ignore": read_flag(entry.get("ignore")),
                }
            )
        return kept

    @cached_property
    def _numbers_of_names(self) -> dict[int, int]:
        """Numbers of the images whose ids are file names of digits, by the value of these digits."""
        names = [key for key in self.image_ids if isinstance(key, str)]
        digits = Counter(int(name) for name in names if name.isdecimal() and len(name) < 100)
        plain = {int(name): self.image_numbers[name] for name in names if name.isdecimal() and len(name) < 100}
        return {value: number for value, number in plain.items() if digits[value] == 1}

    def number_of_image(self, key: Id) -> int | None:
        """Return the number of an image, or None for an unknown id.

        Ultralytics writes 17 for the file 000017.jpg, so an integer also matches a file name of digits.
        """
        if key in self.image_numbers or isinstance(key, str):
            return self.image_numbers.get(key)
        return self._numbers_of_names.get(int(key))

    def check_names(self, names: Iterable[str], field: str) -> None:
        """Raise ConfigurationError if a category is not in the file."""
        if unknown := sorted({*names}.difference(self.category_numbers)):
            known = ", ".join(self.category_numbers)[:1000]
            raise ConfigurationError(f"{field}: {unknown[0]!r} is not in {self.source}; it has {known}")

    def images_with(self, names: Iterable[str] | None) -> set[Id]:
        """Return the ids of images with a true box of the given categories, or of any category."""
        numbers = self.category_numbers
        wanted = {*numbers.values()} if names is None else {numbers[name] for name in names}
        found = {entry["image_id"] for entry in self.content["annotations"] if entry["category_id"] in wanted}
        return {self.image_ids[number] for number in found}

    @cached_property
    def _boxes_by_image(self) -> dict[int, list[dict[str, Any]]]:
        boxes: dict[int, list[dict[str, Any]]] = {}
        for entry in self.content["annotations"]:
            boxes.setdefault(entry["image_id"], []).append(entry)
        return boxes

    def resampled(self, images: Sequence[Id]) -> Truth:
        """Return the truth of some images, with their indices as ids. An image given twice becomes two images."""
        numbers = [self.image_numbers[key] for key in images]
        again = [
            entry | {"image_id": n} for n, old in enumerate(numbers) for entry in self._boxes_by_image.get(old, ())
        ]
        truth = copy.copy(self)
        truth.image_ids = [*range(len(images))]
        truth.image_numbers = {n: n for n in truth.image_ids}  # type: ignore[misc]
        truth.content = self.content | {
            "images": [self.content["images"][old] | {"id": n} for n, old in enumerate(numbers)],
            "annotations": [entry | {"id": i} for i, entry in enumerate(again, 1)],
        }
        return truth

    def evaluate(
        self, results: Array, format: Format, backend: Backend = "hotcoco", images: Iterable[Id] | None = None
    ) -> Curves:
        """Evaluate results.

        Args:
            results: image, x, y, width, height, score, category of N boxes, (N, 7); image and category are numbers.
            format: rules: COCO's, or LVIS's federated rules with 300 detections per image.
            backend: library that computes the numbers.
            images: ids of the images to evaluate; default: all.
        """
        precision, recall = BACKENDS[backend](self._of_images(images), results.reshape(-1, COLUMNS), format)
        names = [category.name for category in self.categories]
        return Curves(precision, recall, names, [category.frequency for category in self.categories])

    def calibration(
        self, results: Array, format: Format, categories: Iterable[str] | None, images: Iterable[Id] | None = None
    ) -> Calibration | None:
        """Return the calibration of the scores in results, (N, 7), see `evaluate` and `vrft.evaluators.calibration`.

        `categories` are the names of the categories whose boxes count; default: all.
        """
        numbers = self.category_numbers
        counted = numbers.values() if categories is None else [numbers[name] for name in categories]
        return calibration(self._of_images(images), results.reshape(-1, COLUMNS), format, counted)

    def _of_images(self, images: Iterable[Id] | None) -> dict[str, Any]:
        if images is None:
            return self.content
        return select_images(self.content, {self.image_numbers[key] for key in images})


def read_content(path: Path, field: str, encoding: str) -> Any:
    """Decode a JSON file.

    Raises:
        ConfigurationError: the file can't be read or is not JSON.
    """
    try:
        data = read_regular(path)
    except OSError as error:
        found = format_hint(format_of(path)) if path.is_dir() else ""
        raise ConfigurationError(f"{field}: {path} can't be read: {error.strerror}{found}") from error
    try:
        content = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        content = None  # unlike msgspec, Python reads a byte order mark and NaN, which is then reported per record
    try:
        if isinstance(content, dict):
            require_each_part_once(data)
        return decode_json(data, encoding) if content is None else content
    except ValueError as error:
        found = format_hint(format_of(path))
        raise ConfigurationError(f"{field}: {path} is not a COCO or LVIS annotation file: {error}{found}") from error


def annotation_reason(entry: Any, images: set[Id], categories: Iterable[Id]) -> str | None:
    """Return why an annotation is not a box of a known category in a known image, or None if it is."""
    if not isinstance(entry, dict):
        return f"expected an object, got {brief(entry)}"
    if entry.get("id") is not None and not is_json_id(entry["id"]):
        return f"id: expected a whole number, text or null, got {brief(entry['id'])}"
    for key, known in (("image_id", images), ("category_id", categories)):
        value = entry.get(key)
        if not is_json_id(value) or value not in known:
            return f"{key}: expected the id of one of the file's {KINDS[key]}, got {brief(value)}"
    bbox = entry.get("bbox")
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(is_number, bbox)):
        return f"bbox: expected [x, y, width, height] in finite numbers, got {brief(bbox)}"
    return values_reason(entry)


KINDS = {"image_id": "images", "category_id": "categories"}


def select_images(content: dict[str, Any], images: set[int]) -> dict[str, Any]:
    """Return numbered content reduced to some images."""
    return content | {
        "images": [image for image in content["images"] if image["id"] in images],
        "annotations": [true for true in content["annotations"] if true["image_id"] in images],
    }
