"""Writers of annotations in the forms of annotation tools, from pictures whose boxes are known."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from tests.helpers.formats import Scene, save, scenes
from vrft.data import (
    BoxCsvData,
    CvatData,
    LabelMeData,
    LabelStudioData,
    SuperviselyData,
    ViaData,
    VocData,
)
from vrft.data.box_data import AnnotatedData
from vrft.data.datasets.scenes import SIZE

Writer = Callable[[Path, list[Scene]], Path]
"""Writes pictures into a folder and returns what `train_annotations` names."""


def voc_xml(name: str, boxes: list[Any], size: int = SIZE) -> str:
    """Return the file that LabelImg writes."""
    objects = "".join(
        f"<object>\n\t\t<name>{escape(box.label)}</name>\n\t\t<pose>Unspecified</pose>\n\t\t<truncated>0</truncated>\n"
        f"\t\t<difficult>0</difficult>\n\t\t<bndbox>\n\t\t\t<xmin>{box.box[0]}</xmin>\n\t\t\t<ymin>{box.box[1]}</ymin>\n"
        f"\t\t\t<xmax>{box.box[2]}</xmax>\n\t\t\t<ymax>{box.box[3]}</ymax>\n\t\t</bndbox>\n\t</object>\n\t"
        for box in boxes
    )
    return (
        f"<annotation>\n\t<folder>JPEGImages</folder>\n\t<filename>{name}</filename>\n\t<path>C:\\me\\{name}</path>\n\t"
        "<source>\n\t\t<database>Unknown</database>\n\t</source>\n\t<size>\n\t\t"
        f"<width>{size}</width>\n\t\t<height>{size}</height>\n\t\t<depth>3</depth>\n\t</size>\n\t"
        f"<segmented>0</segmented>\n\t{objects}</annotation>\n"
    )


def write_voc(folder: Path, pictures: list[Scene]) -> Path:
    """Write the layout of the VOC challenge and return a split list."""
    names = []
    for i, (picture, boxes) in enumerate(pictures):
        name = save(picture, folder / "JPEGImages" / f"{i}.png")
        (folder / "Annotations").mkdir(exist_ok=True)
        (folder / "Annotations" / f"{i}.xml").write_text(voc_xml(name, boxes))
        names.append(str(i))
    split = folder / "ImageSets" / "Main" / "train.txt"
    split.parent.mkdir(parents=True)
    split.write_text("\n".join(names) + "\n")
    return split


def write_voc_folder(folder: Path, pictures: list[Scene]) -> Path:
    """Write XML files beside the images, as Roboflow does."""
    for i, (picture, boxes) in enumerate(pictures):
        (folder / f"{i}.xml").write_text(voc_xml(save(picture, folder / f"{i}.png"), boxes))
    return folder


def write_labelme(folder: Path, pictures: list[Scene]) -> Path:
    """Write JSON files with a rectangle whose corners are in any order, and polygons."""
    for i, (picture, boxes) in enumerate(pictures):
        shapes = []
        for j, box in enumerate(boxes):
            x0, y0, x1, y1 = box.box
            outline = [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]
            points, kind = ([[x1, y1], [x0, y0]], "rectangle") if j == 0 else (outline, "polygon")
            more = {"group_id": None, "description": "", "shape_type": kind, "flags": {}, "mask": None}
            shapes.append({"label": box.label, "points": points, **more})
        content = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imageData": None}
        content |= {"imagePath": f"..\\images\\{i}.png", "imageHeight": SIZE, "imageWidth": SIZE}
        save(picture, folder / "images" / f"{i}.png")
        (folder / "labels").mkdir(exist_ok=True)
        (folder / "labels" / f"{i}.json").write_text(json.dumps(content, indent=2))
    return folder / "labels"


def write_cvat(folder: Path, pictures: list[Scene]) -> Path:
    """Write CVAT for images 1.1, with polygons from the second object of each picture."""
    images = []
    for i, (picture, boxes) in enumerate(pictures):
        name = save(picture, folder / "images" / f"{i}.png")
        shapes = ""
        for j, box in enumerate(boxes):
            x0, y0, x1, y1 = box.box
            common = f'label="{box.label}" source="manual" occluded="0"'
            if j == 0:
                shapes += f'<box {common} xtl="{x0}" ytl="{y0}" xbr="{x1}" ybr="{y1}" z_order="0">\n</box>\n'
            else:
                shapes += f'<polygon {common} points="{x0},{y0};{x1},{y0};{x1},{y1};{x0},{y1}" z_order="0">\n</polygon>'
        images.append(f'<image id="{i}" name="{name}" width="{SIZE}" height="{SIZE}">\n{shapes}\n</image>\n')
    file = folder / "annotations.xml"
    file.write_text(
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n<meta><job><id>1</id></job>'
        f"</meta>\n{''.join(images)}</annotations>\n"
    )
    return file


def studio_regions(boxes: list[Any]) -> list[dict[str, Any]]:
    """Return rectangles and polygons in percent of the image."""
    regions = []
    for j, box in enumerate(boxes):
        x0, y0, x1, y1 = (value / SIZE * 100 for value in box.box)
        outline = {"points": [[x0, y0], [x1, y0], [x1, y1], [x0, y1]], "polygonlabels": [box.label]}
        corner = {"x": x0, "y": y0, "width": x1 - x0, "height": y1 - y0, "rotation": 0, "rectanglelabels": [box.label]}
        kind, value = ("rectanglelabels", corner) if j == 0 else ("polygonlabels", outline)
        size = {"original_width": SIZE, "original_height": SIZE, "image_rotation": 0}
        regions.append({"id": f"r{j}", "type": kind, "from_name": "label", "to_name": "image", "value": value, **size})
    return regions


def write_label_studio(folder: Path, pictures: list[Scene]) -> Path:
    """Write the JSON export, whose images are uploads and local files."""
    tasks = []
    for i, (picture, boxes) in enumerate(pictures):
        name = save(picture, folder / f"{i}.png")
        address = f"/data/upload/1/0a1b2c3d-{name}" if i % 2 else f"/data/local-files/?d=set/{name}"
        result = [*studio_regions(boxes), {"type": "choices", "value": {"choices": ["day"]}, "from_name": "time"}]
        done = [{"id": i, "was_cancelled": True, "result": []}, {"id": i + 9, "was_cancelled": False, "result": result}]
        tasks.append({"id": i + 1, "annotations": done, "data": {"image": address}, "predictions": []})
    file = folder / "project-1.json"
    file.write_text(json.dumps(tasks))
    return file


def write_label_studio_min(folder: Path, pictures: list[Scene]) -> Path:
    """Write the JSON-MIN export."""
    tasks = []
    for i, (picture, boxes) in enumerate(pictures):
        sizes = {"original_width": SIZE, "original_height": SIZE}
        labels = [region["value"] | sizes for region in studio_regions(boxes)]
        name = save(picture, folder / f"{i}.png")
        tasks.append({"image": f"https://x.org/data/{name}?v=1", "id": i + 1, "label": labels, "annotator": 1})
    file = folder / "min.json"
    file.write_text(json.dumps(tasks))
    return file


def write_via(folder: Path, pictures: list[Scene]) -> Path:
    """Write a VIA 2 project, with polygons from the second object of each picture."""
    images = {}
    for i, (picture, boxes) in enumerate(pictures):
        name = save(picture, folder / f"{i}.png")
        regions = []
        for j, box in enumerate(boxes):
            x0, y0, x1, y1 = box.box
            shape: dict[str, Any] = {"name": "rect", "x": x0, "y": y0, "width": x1 - x0, "height": y1 - y0}
            if j:
                shape = {"name": "polygon", "all_points_x": [x0, x1, x1, x0], "all_points_y": [y0, y0, y1, y1]}
            value = box.label if j else {box.label: True}  # a text, and a tick box
            regions.append({"shape_attributes": shape, "region_attributes": {"colour": value}})
        entry = {"filename": name, "size": 100, "regions": regions, "file_attributes": {}}
        images[f"{name}100"] = entry
    file = folder / "via_project.json"
    file.write_text(json.dumps({"_via_settings": {}, "_via_img_metadata": images, "_via_attributes": {}}))
    return file


def write_supervisely(folder: Path, pictures: list[Scene]) -> Path:
    """Write a dataset folder of a project."""
    (folder / "ds" / "ann").mkdir(parents=True)
    for i, (picture, boxes) in enumerate(pictures):
        name = save(picture, folder / "ds" / "img" / f"{i}.png")
        objects = [
            {
                "classTitle": box.label,
                "geometryType": "rectangle",
                "points": {"exterior": [[box.box[0], box.box[1]], [box.box[2], box.box[3]]], "interior": []},
            }
            for box in boxes
        ]
        content = {"description": "", "tags": [], "size": {"height": SIZE, "width": SIZE}, "objects": objects}
        (folder / "ds" / "ann" / f"{name}.json").write_text(json.dumps(content))
    return folder / "ds"


def write_box_csv(folder: Path, pictures: list[Scene]) -> Path:
    """Write the table of TensorFlow's object detection, as Roboflow does."""
    file = folder / "_annotations.csv"
    folder.mkdir(exist_ok=True)
    with file.open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax"])
        for i, (picture, boxes) in enumerate(pictures):
            name = save(picture, folder / f"{i}.png")
            table.writerows([name, SIZE, SIZE, box.label, *box.box] for box in boxes)
    return file


TOOLS: dict[str, tuple[type[AnnotatedData], Writer]] = {
    "voc": (VocData, write_voc),
    "voc_folder": (VocData, write_voc_folder),
    "labelme": (LabelMeData, write_labelme),
    "cvat": (CvatData, write_cvat),
    "label_studio": (LabelStudioData, write_label_studio),
    "label_studio_min": (LabelStudioData, write_label_studio_min),
    "via": (ViaData, write_via),
    "supervisely": (SuperviselyData, write_supervisely),
    "csv": (BoxCsvData, write_box_csv),
}


def write(tool: str, folder: Path, part: str = "train", count: int = 2) -> Path:
    """Write pictures as a tool does."""
    folder.mkdir(parents=True, exist_ok=True)
    return TOOLS[tool][1](folder, scenes(part, count))
