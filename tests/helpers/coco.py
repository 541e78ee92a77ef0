"""A small COCO file and its data module."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from vrft.data import CocoData


def coco(tmp_path: Path, **changes: Any) -> Path:
    """Write a COCO file with two images and return its path. `changes`: tables to replace."""
    for name in ("a.png", "b.png"):
        Image.new("RGB", (40, 30)).save(tmp_path / name)
    content = {
        "images": [{"id": i, "file_name": f"{n}.png", "width": 40, "height": 30} for i, n in ((7, "a"), (2**40, "b"))],
        "categories": [{"id": 3, "name": "cat"}, {"id": 9, "name": "dog"}],
        "annotations": [
            {"image_id": 7, "category_id": 9, "bbox": [1, 2, 3, 4], "iscrowd": 0},
            {"image_id": 7, "category_id": 3, "bbox": [10.5, 0, 5, 30]},
            {"image_id": 7, "category_id": 9, "bbox": [20, 20, 5, 5]},
            {"image_id": 2**40, "category_id": 3, "bbox": [0, 0, 40, 30], "iscrowd": 1},
        ],
    }
    file = tmp_path / "instances.json"
    file.write_text(json.dumps(content | changes))
    return file


def coco_data(tmp_path: Path, changes: dict[str, Any] | None = None, **settings: Any) -> CocoData:
    file = coco(tmp_path, **(changes or {}))
    return CocoData(str(file), str(tmp_path), str(file), str(tmp_path), **settings)


BOX = {"image_id": 7, "category_id": 3, "bbox": [0, 0, 1, 1]}
IMAGE = {"id": 7, "file_name": "a.png", "width": 40, "height": 30}
OTHER = {"id": 8, "file_name": "b.png", "width": 40, "height": 30}
GOOD = {"id": 99, "image_id": 8, "category_id": 3, "bbox": [0, 0, 1, 1]}
