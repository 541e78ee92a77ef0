"""Writers of small data sets in the supported formats, with pictures whose boxes are known.

Each split has at least four pictures; their first objects cycle through the first colours.
"""

from __future__ import annotations

import json
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import savemat

from vrft.data.datasets.scenes import COLOURS, SIZE, draw_scene
from vrft.tasks.detection import boxes_text
from vrft.types import Detection

CLASSES = list(COLOURS)[:2]
PARTS = ("train", "val")
Scene = tuple[Image.Image, list[Detection]]


def scenes(part: str, count: int, objects: tuple[int, int] = (1, 3)) -> list[Scene]:
    """Draw the pictures of a part; their first objects cycle through `CLASSES`. A part is always the same."""
    found: list[Scene] = []
    rng = random.Random(f"formats/{part}")
    while len(found) < count:
        picture, boxes = draw_scene(rng, objects)
        if boxes[0].label == CLASSES[len(found) % len(CLASSES)]:
            found.append((picture, boxes))
    return found


def save(picture: Image.Image, path: Path) -> str:
    """Save a picture and return the file's name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **({"quality": 95} if path.suffix == ".jpg" else {}))
    return path.name


def colours(part: str, count: int) -> list[tuple[Image.Image, int]]:
    """Draw pictures of one object; return each with the number of its class, from 1."""
    return [(picture, CLASSES.index(boxes[0].label) + 1) for picture, boxes in scenes(part, count, (1, 1))]


def write_flowers(folder: Path, count: int = 4) -> Path:
    """Write Flowers-102 with `count` pictures in each of the three splits; red is class 1, green class 2."""
    labels: list[int] = []
    ids: dict[str, list[int]] = {}
    for name, part in (("tstid", "val"), ("trnid", "train"), ("valid", "valid")):
        ids[name] = []
        for picture, label in colours(part, count):
            labels.append(label)
            ids[name].append(len(labels))
            save(picture, folder / "jpg" / f"image_{len(labels):05d}.jpg")
    savemat(folder / "imagelabels.mat", {"labels": np.array([labels], np.uint8)})
    savemat(folder / "setid.mat", {name: np.array([numbers], np.uint16) for name, numbers in ids.items()})
    return folder


BREEDS = ("Abyssinian", "american_bulldog")


def write_pets(folder: Path, count: int = 4) -> Path:
    """Write Oxford-IIIT Pets with two breeds."""
    (folder / "annotations").mkdir(parents=True)
    number = 100
    for name, part in (("trainval", "train"), ("test", "val")):
        lines = ["#Image CLASS-ID SPECIES BREED ID"]
        for picture, label in colours(part, count):
            stem = f"{BREEDS[label - 1]}_{number}"
            save(picture, folder / "images" / f"{stem}.jpg")
            lines.append(f"{stem} {label} {label} 1")
            number += 1
        (folder / "annotations" / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return folder


VARIANTS = ("707-320", "Boeing 717")


def write_aircraft(folder: Path, count: int = 4) -> Path:
    """Write FGVC-Aircraft with two variants."""
    number = 34309
    for name, part in (("train", "train"), ("val", "valid"), ("test", "val")):
        lines = []
        for picture, label in colours(part, count):
            save(picture, folder / "data" / "images" / f"{number:07d}.jpg")
            lines.append(f"{number:07d} {VARIANTS[label - 1]}")
            number += 1
        (folder / "data" / f"images_variant_{name}.txt").write_text("\n".join(lines) + "\n")
    return folder


MODELS = ("AM General Hummer SUV 2000", "Acura RL Sedan 2012")


def write_cars(folder: Path, count: int = 4) -> Path:
    """Write Stanford Cars with two models."""
    (folder / "devkit").mkdir(parents=True)
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": np.array([MODELS], object)})
    for part, name, file in (
        ("train", "cars_train", "devkit/cars_train_annos.mat"),
        ("val", "cars_test", "cars_test_annos_withlabels.mat"),
    ):
        rows = []
        for i, (picture, label) in enumerate(colours(part, count), 1):
            rows.append((1, 1, SIZE, SIZE, label, save(picture, folder / name / f"{i:05d}.jpg")))
        fields = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")
        savemat(folder / file, {"annotations": np.array([rows], [(field, object) for field in fields])})
    return folder


def corners(box: tuple[float, ...]) -> list[list[float]]:
    """Return the corners of a box as a polygon."""
    x0, y0, x1, y1 = box
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]


def write_reason_seg(folder: Path, count: int = 4, val_split: str = "val") -> Path:
    """Write ReasonSeg: two instructions for the first object of each picture; the other objects are ignored."""
    for part, name in zip(PARTS, ("train", val_split), strict=True):
        for i, (picture, boxes) in enumerate(scenes(part, count)):
            save(picture, folder / name / f"{i}.jpg")
            shapes = [{"label": "ignore" if j else "Target", "points": corners(box.box)} for j, box in enumerate(boxes)]
            shapes.append({"label": "flag", "points": [[0, 0]]})
            colour = boxes[0].label
            content = {
                "text": [f"What is {colour}?", f"the object which has the colour {colour}"],
                "is_sentence": True,
                "shapes": shapes,
            }
            (folder / name / f"{i}.json").write_text(json.dumps(content))
    return folder


def coco_tables(folder: Path, part: str, count: int, start: int = 1) -> tuple[dict[str, Any], list[list[Detection]]]:
    """Save pictures in `folder`; return a COCO instances file with ids from `start`, and the boxes."""
    tables: dict[str, Any] = {"images": [], "annotations": []}
    tables["categories"] = [{"id": i, "name": name} for i, name in enumerate(COLOURS, 1)]
    found = scenes(part, count)
    for image_id, (picture, boxes) in enumerate(found, start):
        name = save(picture, folder / f"{image_id:012d}.png")
        tables["images"].append({"id": image_id, "file_name": name, "width": SIZE, "height": SIZE})
        for box in boxes:
            x0, y0, x1, y1 = box.box
            tables["annotations"].append(
                {
                    "id": start * 100 + len(tables["annotations"]),
                    "image_id": image_id,
                    "category_id": 1 + list(COLOURS).index(box.label),
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": 0,
                }
            )
    return tables, [boxes for _, boxes in found]


def write_references(folder: Path, count: int = 4, form: str = "pickle") -> Path:
    """Write RefCOCO: two sentences per object in `refs(unc).p` or `refs.json`, with `instances.json` and `images/`."""
    references: list[dict[str, Any]] = []
    instances: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": []}
    for start, part in ((1, "train"), (1001, "val")):
        tables, _ = coco_tables(folder / "images", part, count, start)
        for key, rows in tables.items():
            instances[key] = rows if key == "categories" else instances[key] + rows
        for annotation in tables["annotations"]:
            colour = list(COLOURS)[annotation["category_id"] - 1]
            references.append(
                {
                    "ref_id": len(references),
                    "ann_id": annotation["id"],
                    "image_id": annotation["image_id"],
                    "category_id": annotation["category_id"],
                    "split": part,
                    "sent_ids": [2 * len(references), 2 * len(references) + 1],
                    "sentences": [
                        {"sent": f"{colour} thing", "raw": f"{colour.upper()}!"},
                        {"raw": f"what is {colour}"},
                    ],
                }
            )
    (folder / "instances.json").write_text(json.dumps(instances))
    if form == "pickle":
        (folder / "refs(unc).p").write_bytes(pickle.dumps(references, protocol=0))
    else:
        (folder / "refs.json").write_text(json.dumps(references))
    return folder


def write_yolo(folder: Path, count: int = 4) -> Path:
    """Write YOLO labels and return their data.yaml; the objects of each part's last picture are outlines."""
    for part in PARTS:
        for i, (picture, boxes) in enumerate(scenes(part, count)):
            save(picture, folder / "images" / part / f"{i}.png")
            lines = []
            for box in boxes:
                x0, y0, x1, y1 = (value / SIZE for value in box.box)
                numbers = [(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0]
                if i == count - 1:
                    numbers = [value / SIZE for point in corners(box.box) for value in point]
                lines.append(f"{list(COLOURS).index(box.label)} {' '.join(f'{value:.8f}' for value in numbers)}\n")
            labels = folder / "labels" / part / f"{i}.txt"
            labels.parent.mkdir(parents=True, exist_ok=True)
            labels.write_text("".join(lines))
    names = "".join(f"  {i}: {name}\n" for i, name in enumerate(COLOURS))
    config = folder / "data.yaml"
    config.write_text(f"path: .\ntrain: images/train\nval: images/val\nnames:\n{names}")
    return config


def solved(part: str, count: int, size: tuple[int, int] = (1000, 1000)) -> list[tuple[Image.Image, str, str]]:
    """Draw pictures; return each with a category as problem and its boxes as solution, in a frame of `size`."""
    found = []
    for picture, boxes in scenes(part, count):
        scaled = [[round(value * size[i % 2] / SIZE) for i, value in enumerate(box.box)] for box in boxes]
        chosen = [tuple(box) for box, true in zip(scaled, boxes, strict=True) if true.label == boxes[0].label]
        text = boxes_text(chosen, [1.0] * len(chosen))  # type: ignore[arg-type]
        found.append((picture, boxes[0].label, f"<answer>{text}</answer>"))
    return found


def write_jsonl(folder: Path, count: int = 4, size: tuple[int, int] = (1000, 1000)) -> Path:
    """Write `train.jsonl` and `val.jsonl` with problems and solutions of detection."""
    for part in PARTS:
        lines = []
        for i, (picture, problem, solution) in enumerate(solved(part, count, size)):
            name = save(picture, folder / "images" / f"{part}{i}.png")
            lines.append(json.dumps({"image": f"images/{name}", "problem": problem, "solution": solution}) + "\n")
        (folder / f"{part}.jsonl").write_text("".join(lines))
    return folder


def write_hub(folder: Path, count: int = 4, form: str = "parquet") -> Path:
    """Write a data set like Visual-RFT's for each part, as parquet files or by `save_to_disk`."""
    import datasets

    folder.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        columns = zip(*solved(part, count), strict=True)
        table = datasets.Dataset.from_dict(dict(zip(("image", "problem", "solution"), map(list, columns), strict=True)))
        if form == "parquet":
            table.to_parquet(folder / f"{part}.parquet")
        else:
            table.save_to_disk(folder / part)
    return folder


def write_lvis(folder: Path, count: int = 4) -> Path:
    """Write LVIS v1: `lvis_train.json`, `lvis_val.json`, and pictures in the folders that their URLs name."""
    for start, part in ((1, "train"), (1001, "val")):
        name = f"{part}2017"
        tables, found = coco_tables(folder / name, part, count, start)
        for image, boxes in zip(tables["images"], found, strict=True):
            there = {list(COLOURS).index(box.label) + 1 for box in boxes}
            absent = sorted({*range(1, len(COLOURS) + 1)} - there)
            image["coco_url"] = f"http://images.cocodataset.org/{name}/{image.pop('file_name')}"
            image["neg_category_ids"] = absent[:2]
            image["not_exhaustive_category_ids"] = absent[2:3]
        for category in tables["categories"]:
            own = [row for row in tables["annotations"] if row["category_id"] == category["id"]]
            images = {row["image_id"] for row in own}
            frequency = "r" if len(images) < 2 else "c"
            category |= {"frequency": frequency, "image_count": len(images), "instance_count": len(own)}
        (folder / f"lvis_{part}.json").write_text(json.dumps(tables))
    return folder
