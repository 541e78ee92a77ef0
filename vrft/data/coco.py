"""COCO instance files: one sample for each image and category in it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info
from PIL import Image, UnidentifiedImageError
from torch.utils.data import Dataset

from vrft.data.datamodule import VisionData
from vrft.data.few_shot import choose_shots, record_shots
from vrft.errors import ConfigurationError
from vrft.types import Detection, Sample


@dataclass(frozen=True, slots=True)
class Query:
    """One question: where are the objects of this category in this image?"""

    image_id: int
    file: Path
    size: tuple[int, int]
    category: str
    detections: tuple[Detection, ...]


class CocoDetection(Dataset[Sample]):
    """Samples of a list of queries; images are read when they are asked for."""

    def __init__(self, queries: Sequence[Query]) -> None:
        self.queries = queries

    def __len__(self) -> int:
        return len(self.queries)

    def __getitem__(self, index: int) -> Sample:
        query = self.queries[index]
        image = Image.open(query.file).convert("RGB")
        return Sample(index, image, query.image_id, query.category, query.detections)


class CocoData(VisionData):
    """Images with a COCO `instances_*.json`, for training and held out."""

    def __init__(
        self,
        train_annotations: str,
        train_images: str,
        val_annotations: str,
        val_images: str,
        categories: list[str] | None = None,
        shots: int | None = None,
        batch_size: int = 8,
        eval_batch_size: int = 32,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        """Names the files; they are read when training starts.

        Args:
            train_annotations: COCO instances file to train on.
            train_images: folder of its images.
            val_annotations: COCO instances file of held-out images.
            val_images: folder of its images.
            categories: names of the categories to ask for; default: all.
            shots: images per category to train on, chosen by `seed`; default: all.
            batch_size: prompts per rank and training step.
            eval_batch_size: prompts decoded at once in evaluation.
            num_workers: processes that read and encode images; 0: the main one.
            seed: of the order and of the choice of shots.
        """
        super().__init__(batch_size, eval_batch_size, num_workers, seed)
        self.train_annotations, self.train_images = Path(train_annotations), Path(train_images)
        self.val_annotations, self.val_images = Path(val_annotations), Path(val_images)
        self.categories, self.shots = categories, shots
        self.check_paths()

    def check_paths(self) -> None:
        """Raise ConfigurationError if a file or folder is missing."""
        for name in ("train_annotations", "train_images", "val_annotations", "val_images"):
            path = getattr(self, name)
            if not path.exists():
                kind = "a folder of images" if name.endswith("images") else "a COCO instances file"
                raise ConfigurationError(f"data.{name}: no such file or folder: {path}; expected {kind}")

    def setup(self, stage: str) -> None:
        if stage == "fit":
            queries = read_queries(self.train_annotations, self.train_images, self.categories)
            if self.shots is not None:
                queries = choose_shots(queries, lambda query: query.category, self.shots, self.seed)
                assert self.trainer is not None
                record_shots(self.trainer.default_root_dir, [(query.category, query.image_id) for query in queries])
            self._train = CocoDetection(queries)
        self._val = CocoDetection(read_queries(self.val_annotations, self.val_images, self.categories))

    def train_set(self) -> CocoDetection:
        return self._train

    def val_set(self) -> CocoDetection:
        return self._val


def read_queries(annotations: Path, images: Path, categories: Sequence[str] | None) -> list[Query]:
    """Every (image, category in it) of a COCO instances file, in the order of the file.

    Crowd regions and boxes without area are no targets; how many there were is logged.

    Raises:
        ConfigurationError: the file, a record or an image is not what COCO says; names file, record and field.
    """
    content = _read_json(annotations)
    names = {
        _get(annotations, "categories", i, record, "id", int): _get(annotations, "categories", i, record, "name", str)
        for i, record in enumerate(content["categories"])
    }
    wanted = _select_categories(annotations, names, categories)
    by_image = _boxes_by_image(annotations, content, names)
    queries = []
    for i, record in enumerate(content["images"]):
        found = {category: boxes for category, boxes in by_image[record["id"]].items() if category in wanted}
        if found:
            file, size = _image_file(annotations, i, record, images)
            queries += [Query(record["id"], file, size, name, tuple(boxes)) for name, boxes in found.items()]
    if not queries:
        raise ConfigurationError(f"{annotations}: no object to ask for; expected at least one box")
    return queries


def _boxes_by_image(
    path: Path, content: dict[str, Any], names: dict[int, str]
) -> dict[int, dict[str, list[Detection]]]:
    by_image: dict[int, dict[str, list[Detection]]] = {
        _get(path, "images", i, record, "id", int): {} for i, record in enumerate(content["images"])
    }
    left_out = 0
    for i, record in enumerate(content["annotations"]):
        image_id = _get(path, "annotations", i, record, "image_id", int)
        category_id = _get(path, "annotations", i, record, "category_id", int)
        if image_id not in by_image:
            raise ConfigurationError(f"{path}: annotations[{i}].image_id: no image has id {image_id}")
        if category_id not in names:
            raise ConfigurationError(f"{path}: annotations[{i}].category_id: no category has id {category_id}")
        x, y, w, h = _bbox(path, i, record)
        if record.get("iscrowd") or w <= 0 or h <= 0:
            left_out += 1
            continue
        name = names[category_id]
        by_image[image_id].setdefault(name, []).append(Detection((x, y, x + w, y + h), name))
    if left_out:
        rank_zero_info(f"{path}: {left_out} crowd regions or boxes without area are not asked for")
    return by_image


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigurationError(f"{path}: not a JSON file: {error}") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise ConfigurationError(f"{path}: expected a COCO instances file with a list '{key}'")
    return content


def _get(path: Path, table: str, index: int, record: Any, key: str, kind: type) -> Any:
    value = record.get(key) if isinstance(record, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ConfigurationError(f"{path}: {table}[{index}].{key}: expected {kind.__name__}, got {value!r}")
    return value


def _bbox(path: Path, index: int, record: dict[str, Any]) -> tuple[float, float, float, float]:
    bbox = _get(path, "annotations", index, record, "bbox", list)
    if len(bbox) != 4 or not all(isinstance(v, int | float) and math.isfinite(v) for v in bbox):
        raise ConfigurationError(f"{path}: annotations[{index}].bbox: expected [x, y, width, height], got {bbox!r}")
    x, y, w, h = map(float, bbox)
    return x, y, w, h


def _select_categories(path: Path, names: dict[int, str], categories: Sequence[str] | None) -> set[str]:
    known = set(names.values())
    if unknown := sorted(set(categories or ()) - known):
        raise ConfigurationError(f"data.categories: {unknown[0]!r} is not in {path}; it has {', '.join(sorted(known))}")
    return known if categories is None else set(categories)


def _image_file(path: Path, index: int, record: dict[str, Any], folder: Path) -> tuple[Path, tuple[int, int]]:
    file = folder / _get(path, "images", index, record, "file_name", str)
    size = _get(path, "images", index, record, "width", int), _get(path, "images", index, record, "height", int)
    try:
        with Image.open(file) as image:
            actual = image.size
    except FileNotFoundError as error:
        raise ConfigurationError(f"{path}: images[{index}].file_name: no such image: {file}") from error
    except (UnidentifiedImageError, OSError) as error:
        raise ConfigurationError(f"{path}: images[{index}].file_name: not a readable image: {file}") from error
    if actual != size:
        raise ConfigurationError(
            f"{path}: images[{index}]: width and height say {size[0]} x {size[1]}, {file} is {actual[0]} x {actual[1]}"
        )
    return file, size
