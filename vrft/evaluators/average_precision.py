"""Average precision and recall of boxes as defined by COCO and LVIS, from an annotation file and a table of results.

hotcoco computes them: it agrees with pycocotools and with lvis-api's rules to rounding, and takes a hundredth of their
time. pycocotools can be chosen instead for COCO.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from vrft.data.files import is_id, is_number
from vrft.errors import ConfigurationError

Format = Literal["coco", "lvis"]
Backend = Literal["hotcoco", "pycocotools"]
Convention = Literal["standard", "visual_rft"]
Array = NDArray[np.float64]

COCO_NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
LVIS_NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf", "AR", "ARs", "ARm", "ARl")
UNDEFINED = -1.0
"""The benchmarks' value of a number that has no true box."""

ANNOTATION_FIELDS = ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "ignore")
"""Fields of an annotation that are kept, i.e. no polygons. LVIS has no `iscrowd`, and some files no `area`."""

IGNORED_AREA = 1e12
"""An area above the largest range, so that hotcoco ignores the box."""

COLUMNS = 7
"""Columns of a table of results: image id, x, y, width, height, score, category id."""


class TruthImage(msgspec.Struct, gc=False):
    """An image of an annotation file."""

    id: int


class TruthCategory(msgspec.Struct, gc=False):
    """A category, in LVIS with its frequency."""

    id: int
    name: str
    frequency: str = ""


class TruthFile(msgspec.Struct, gc=False):
    """An annotation file without its annotations."""

    images: list[TruthImage]
    categories: list[TruthCategory]


class Result(msgspec.Struct, gc=False):
    """An entry of a results file."""

    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    score: float


@dataclass(frozen=True)
class Curves:
    """Precision and recall of an evaluation, -1 without a true box.

    T = 10 IoU thresholds, R = 101 recall levels, K categories, A = 4 ranges of area, M limits on detections per image.

    Attributes:
        precision: precision (T, R, K, A).
        recall: recall (T, K, A, M).
        names: category names in the order of their ids (K,).
        frequencies: category frequencies: r, c or f in LVIS, else empty (K,).
    """

    precision: Array
    recall: Array
    names: Sequence[str]
    frequencies: Sequence[str]

    def select(self, names: Iterable[str]) -> Curves:
        """Return the curves of some categories."""
        wanted = {*names}
        chosen = [k for k, name in enumerate(self.names) if name in wanted]
        return Curves(
            self.precision[:, :, chosen],
            self.recall[:, chosen],
            [self.names[k] for k in chosen],
            [self.frequencies[k] for k in chosen],
        )

    def per_category(self, convention: Convention = "standard") -> dict[str, float]:
        """Return the average precision of each category that has a true box."""
        areas = slice(None) if convention == "visual_rft" else slice(1)
        values = {name: _mean(self.precision[:, :, k, areas]) for k, name in enumerate(self.names)}
        return {name: value for name, value in values.items() if value != UNDEFINED}

    def coco(self) -> dict[str, float]:
        """Return COCO's 12 numbers, in 0..1, -1 where undefined."""
        p, r = self.precision, self.recall
        values = [p[..., 0], p[0, ..., 0], p[5, ..., 0], p[..., 1], p[..., 2], p[..., 3]]
        values += [r[..., 0, 0], r[..., 0, 1], r[..., 0, 2], r[..., 1, 2], r[..., 2, 2], r[..., 3, 2]]
        return dict(zip(COCO_NUMBERS, map(_mean, values), strict=True))

    def lvis(self) -> dict[str, float]:
        """Return LVIS's 13 numbers, in 0..1, -1 where undefined."""
        p, r = self.precision, self.recall
        kinds = {kind: [k for k, value in enumerate(self.frequencies) if value == kind] for kind in "rcf"}
        values = [p[..., 0], p[0, ..., 0], p[5, ..., 0], p[..., 1], p[..., 2], p[..., 3]]
        values += [p[:, :, kinds[kind], 0] for kind in "rcf"]
        values += [r[..., area, 0] for area in range(4)]
        return dict(zip(LVIS_NUMBERS, map(_mean, values), strict=True))

    def numbers(self, format: Format, convention: Convention = "standard") -> dict[str, float]:
        """Return the benchmark's numbers; with `visual_rft`, LVIS's AP is averaged over all ranges of area."""
        found = self.coco() if format == "coco" else self.lvis()
        if convention == "visual_rft" and format == "lvis":
            each = self.per_category(convention)
            found["AP"] = sum(each.values()) / len(each) if each else UNDEFINED
        return found


def _mean(values: Array) -> float:
    defined = values[values > UNDEFINED]
    return float(defined.mean()) if defined.size else UNDEFINED


class Truth:
    """An annotation file of COCO or LVIS."""

    def __init__(self, path: Path, field: str = "annotations", skip_bad: bool = False) -> None:
        """Read the file.

        Args:
            path: annotation file.
            field: setting that names the file, for messages.
            skip_bad: leave out invalid annotations, which a data module reports.

        Raises:
            ConfigurationError: the file can't be read, has another format, or holds an invalid annotation.
        """
        self.path = path
        try:
            data = path.read_bytes()
            self.content = read_content(data)
            tables = msgspec.convert(self.content, type=TruthFile)
        except OSError as error:
            raise ConfigurationError(f"{field}: {path} can't be read: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise ConfigurationError(f"{field}: {path} is not a COCO or LVIS annotation file: {error}") from error
        self.image_ids = {image.id for image in tables.images}
        self.categories = sorted(tables.categories, key=lambda category: category.id)
        self.ids = {category.name: category.id for category in self.categories}
        known = self.image_ids, {*self.ids.values()}
        kept = []
        for i, entry in enumerate(self.content["annotations"]):
            if is_box(entry, *known):
                area = entry["bbox"][2] * entry["bbox"][3]
                given = {key: entry[key] for key in ANNOTATION_FIELDS if key in entry}
                kept.append({"iscrowd": 0, "area": area} | given)
            elif not skip_bad:
                raise ConfigurationError(
                    f"{field}: {path}: annotations[{i}]: expected an image_id and a category_id of the file and a bbox "
                    "of four finite numbers"
                )
        self.content["annotations"] = kept

    def check_names(self, names: Iterable[str], field: str) -> None:
        """Raise ConfigurationError if a category is not in the file."""
        if unknown := sorted({*names}.difference(self.ids)):
            raise ConfigurationError(
                f"{field}: {unknown[0]!r} is not in {self.path}; it has {', '.join(self.ids)[:1000]}"
            )

    def images_with(self, names: Iterable[str] | None) -> set[int]:
        """Return the ids of images with a true box of the given categories, or of any."""
        wanted = {*self.ids.values()} if names is None else {self.ids[name] for name in names}
        return {entry["image_id"] for entry in self.content["annotations"] if entry["category_id"] in wanted}

    def resampled(self, images: Sequence[int]) -> Truth:
        """Return the truth of some images, numbered from 1; an image given twice becomes two images."""
        by_id = {image["id"]: image for image in self.content["images"]}
        boxes: dict[int, list[dict[str, Any]]] = {}
        for entry in self.content["annotations"]:
            boxes.setdefault(entry["image_id"], []).append(entry)
        again = [entry | {"image_id": n} for n, image in enumerate(images, 1) for entry in boxes.get(image, ())]
        truth = copy.copy(self)
        truth.content = self.content | {
            "images": [by_id[image] | {"id": n} for n, image in enumerate(images, 1)],
            "annotations": [entry | {"id": i} for i, entry in enumerate(again, 1)],
        }
        return truth

    def evaluate(
        self,
        results: Array,
        format: Format,
        backend: Backend = "hotcoco",
        images: Iterable[int] | None = None,
    ) -> Curves:
        """Evaluate results (N, 7).

        Args:
            results: image id, x, y, width, height, score, category id.
            format: rules: COCO's, or LVIS's federated ones with 300 detections per image.
            backend: library that computes the numbers.
            images: ids of the images to evaluate; default: all.
        """
        content = self.content if images is None else select_images(self.content, {*images})
        precision, recall = BACKENDS[backend](content, results.reshape(-1, COLUMNS), format)
        names = [category.name for category in self.categories]
        return Curves(precision, recall, names, [category.frequency for category in self.categories])


def read_content(data: bytes) -> dict[str, Any]:
    """Decode an annotation file. Raises ValueError if it is not JSON or has no annotations."""
    try:
        content = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        content = json.loads(data)  # unlike msgspec, reads NaN
    if not isinstance(content, dict) or not isinstance(content.get("annotations"), list):
        raise ValueError("expected images, annotations and categories")
    return content


def is_box(entry: Any, images: set[int], categories: set[int]) -> bool:
    """Return whether an annotation is a box of a known category in a known image."""
    if not isinstance(entry, dict) or not isinstance(entry.get("bbox"), list) or len(entry["bbox"]) != 4:
        return False
    ids = entry.get("image_id"), entry.get("category_id")
    if not all(map(is_id, ids)) or not all(map(is_number, entry["bbox"])):
        return False
    return ids[0] in images and ids[1] in categories


def select_images(content: dict[str, Any], images: set[int]) -> dict[str, Any]:
    """Return the content of an annotation file reduced to some images."""
    return content | {
        "images": [image for image in content["images"] if image["id"] in images],
        "annotations": [true for true in content["annotations"] if true["image_id"] in images],
    }


def as_lvis_reads(content: dict[str, Any]) -> dict[str, Any]:
    """Apply LVIS's reading: no crowds, and annotations marked `ignore` are ignored, by an area beyond all ranges."""
    rows = [
        row | {"iscrowd": 0, "area": IGNORED_AREA if row.get("ignore") else row["area"]}
        for row in content["annotations"]
    ]
    return content | {"annotations": rows}


def _with_hotcoco(content: dict[str, Any], results: Array, format: Format) -> tuple[Array, Array]:
    import hotcoco

    truth = hotcoco.COCO(as_lvis_reads(content) if format == "lvis" else content)
    found = truth.load_res(results)
    evaluation = hotcoco.COCOeval(truth, found, "bbox", lvis_style=format == "lvis")
    evaluation.evaluate()
    evaluation.accumulate()
    assert evaluation.eval is not None
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
    return np.asarray(precision, np.float64)[..., -1], np.asarray(recall, np.float64)


def _with_pycocotools(content: dict[str, Any], results: Array, format: Format) -> tuple[Array, Array]:
    if format == "lvis":
        raise ConfigurationError("backend: pycocotools implements COCO's rules only; expected hotcoco for LVIS")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        # numbered from 1: pycocotools counts a match with annotation id 0 as unmatched
        truth.dataset = content | {"annotations": [row | {"id": i} for i, row in enumerate(content["annotations"], 1)]}
        truth.createIndex()
        found = truth.loadRes(results) if len(results) else COCO()
        found.imgs, found.cats = truth.imgs, truth.cats
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
    return precision[..., -1], recall


BACKENDS: dict[Backend, Callable[[dict[str, Any], Array, Format], tuple[Array, Array]]] = {
    "hotcoco": _with_hotcoco,
    "pycocotools": _with_pycocotools,
}


def read_results(path: Path, truth: Truth, field: str = "results") -> Array:
    """Read a results file as a table (N, 7).

    Raises:
        ConfigurationError: the file is not a list of results, or names an image or category that the truth lacks.
    """
    try:
        entries = msgspec.json.decode(path.read_bytes(), type=list[Result])
    except OSError as error:
        raise ConfigurationError(f"{field}: {path} can't be read: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigurationError(
            f"{field}: {path} is not a list of {{image_id, category_id, bbox, score}}: {error}"
        ) from error
    categories = {*truth.ids.values()}
    for i, entry in enumerate(entries):
        reason = None
        if entry.image_id not in truth.image_ids:
            reason = f"image_id: {truth.path} has no image {entry.image_id}"
        elif entry.category_id not in categories:
            reason = f"category_id: {truth.path} has no category {entry.category_id}"
        elif min(entry.bbox[2:]) < 0:
            reason = f"bbox: expected x, y, width, height, got {list(entry.bbox)}"
        if reason is not None:
            raise ConfigurationError(f"{field}: {path}: [{i}].{reason}")
    rows = [(entry.image_id, *entry.bbox, entry.score, entry.category_id) for entry in entries]
    return np.array(rows, np.float64).reshape(-1, COLUMNS)
