"""Recognise annotation formats, so that the error for a file in another format names the class that reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

from vrft.data.files import UTF8, decode_json, read_bytes, read_xml
from vrft.errors import ConfigurationError

MAX_LISTED = 1000
"""Maximum number of files in a folder that are examined."""

SUFFIXES = {
    ".csv": "a table: --data=BoxCsvData if it has boxes, --data=CsvData if it has classes",
    ".jsonl": "JSON lines: --data=JsonlData",
    ".data": "YOLO 1.1 of Darknet or CVAT; export it for Ultralytics, with a data.yaml",
    ".names": "YOLO 1.1 of Darknet or CVAT; export it for Ultralytics, with a data.yaml",
    ".parquet": "a Hugging Face data set: --data=HubData",
    ".txt": "YOLO labels or a list: --data=YoloData with data.config=data.yaml, or --data=VocData for ImageSets/Main",
    ".yaml": "YOLO: --data=YoloData with data.config",
    ".yml": "YOLO: --data=YoloData with data.config",
}

VOC = "Pascal VOC: --data=VocData with the folder of XML files, or ImageSets/Main/train.txt, as data.train_annotations"
CVAT = "CVAT for images: --data=CvatData with data.train_annotations=annotations.xml"
COCO = "COCO: --data=CocoData"
RESULTS = "a COCO results file; expected one with images, annotations and categories"
LABELME = "LabelMe: --data=LabelMeData with the folder of JSON files as data.train_annotations"
STUDIO = "Label Studio: --data=LabelStudioData"
VIA = "VIA: --data=ViaData"
SUPERVISELY = "Supervisely: --data=SuperviselyData with the folder that has ann/ and img/ as data.train_annotations"


def load_json(path: Path, encoding: str, expected: str) -> Any:
    """Read JSON. Raise ConfigurationError if the file is not JSON."""
    if path.is_dir():
        refuse_other_format(path, expected)
    try:
        return decode_json(read_bytes(path), encoding)
    except ValueError as error:
        refuse_other_format(path, expected, str(error))


def refuse_other_format(path: Path, expected: str, reason: str = "") -> NoReturn:
    """Raise ConfigurationError for a file or folder in an unexpected format. Name the format if it is known."""
    found = format_of(path)
    parts = [f"{path}: not {expected}", reason, f"this is {found}" if found else ""]
    raise ConfigurationError("; ".join(part for part in parts if part))


def format_of(path: Path) -> str | None:
    """Return the format of a file or folder and the class that reads it, or None if the format is unknown."""
    if path.is_dir():
        return _format_of_folder(path)
    if path.suffix.lower() in SUFFIXES:
        return SUFFIXES[path.suffix.lower()]
    try:
        if path.suffix.lower() == ".xml":
            return {"annotation": VOC, "annotations": CVAT}.get(read_xml(path, UTF8).tag)
        return format_of_json(decode_json(read_bytes(path)))
    except (ValueError, LookupError):
        return None


def format_hint(found: str | None) -> str:
    """Return the end of a message that names a format, given the result of `format_of`, but not the class."""
    return f"; this is {found.partition(':')[0]}" if found else ""


def _format_of_folder(folder: Path) -> str | None:
    if (folder / "Annotations").is_dir():
        return VOC
    if (folder / "ann").is_dir():
        return SUPERVISELY
    if (folder / "data.yaml").is_file():
        return SUFFIXES[".yaml"]
    names = (path for path, _ in zip(folder.rglob("*"), range(MAX_LISTED), strict=False))
    file = next((path for path in names if path.suffix.lower() in (".xml", ".json") and path.is_file()), None)
    return None if file is None else format_of(file)


def format_of_json(content: Any) -> str | None:
    """Return the format of decoded JSON, see `format_of`."""
    first = content[0] if isinstance(content, list) and content else None
    if isinstance(first, dict):
        if {"bbox", "score", "image_id"} <= {*first}:
            return RESULTS
        if isinstance(first.get("annotations"), list) and any(map(is_createml_box, first["annotations"])):
            return "CreateML, which has no reader; export the annotations as COCO"
        return STUDIO if "data" in first or "image" in first else None
    if not isinstance(content, dict):
        return None
    if {"images", "annotations", "categories"} <= {*content}:
        return COCO
    if "shapes" in content:
        return LABELME
    if "objects" in content:
        return SUPERVISELY
    if {"file", "metadata", "view"} <= {*content}:
        return "VIA 3, which has no reader; annotate in VIA 2, or export another format"
    images = content.get("_via_img_metadata", content)
    values = [*images.values()] if isinstance(images, dict) else []
    return VIA if values and all(isinstance(value, dict) and "regions" in value for value in values) else None


def is_createml_box(entry: Any) -> bool:
    """Return whether an entry is a CreateML box, with a label and the coordinates of its centre."""
    return isinstance(entry, dict) and {"label", "coordinates"} <= {*entry}
