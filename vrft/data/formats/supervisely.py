"""Supervisely's dataset folders with `ann/` and `img/`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vrft.data.bad_records import BadRecords
from vrft.data.box_data import AnnotatedData, Corners, Entry
from vrft.data.files import brief, hull, points_of, read_all, require_object, size_of
from vrft.data.folders import find_files
from vrft.data.formats.other_formats import load_json, refuse_other_format
from vrft.data.image_names import find_image

OUTLINES = ("rectangle", "polygon", "line")


class SuperviselyData(AnnotatedData):
    """A dataset folder of a Supervisely project: `ann/x.jpg.json` for each `img/x.jpg`."""

    expected = "a dataset folder of a Supervisely project, with ann/ and img/"

    def entries(self, annotations: Path, images: Path | None, bad_records: BadRecords) -> Iterator[Entry]:
        folder = annotations / "ann"
        if not folder.is_dir():
            refuse_other_format(annotations, self.expected)
        for file in find_files(folder, {".json"}, bad_records.passed_over):
            try:
                content = load_json(file, self.encoding, self.expected)
                if not isinstance(content, dict) or not isinstance(content.get("objects"), list):
                    refuse_other_format(file, self.expected)
                size = require_object(content.get("size") or {}, "size")
                boxes = read_all(content["objects"], _box)
                outlines = sum(item.get("geometryType") != "rectangle" for item in content["objects"])
                image = find_image(file.name.removesuffix(".json"), [annotations / "img" if images is None else images])
                sides = size_of(size.get("width"), size.get("height"))
                yield Entry(image, str(file), sides, boxes, outlines=outlines)
            except ValueError as error:
                bad_records.add(str(file), str(error).removeprefix(f"{file}: "))


def _box(i: int, item: object) -> tuple[str, Corners]:
    found = require_object(item, f"objects[{i}]")
    return found.get("classTitle", ""), _corners(i, found)


def _corners(i: int, item: dict[str, Any]) -> Corners:
    kind = item.get("geometryType", "polygon")
    if kind not in OUTLINES:
        raise ValueError(f"objects[{i}]: {brief(kind)} has no box; expected {', '.join(OUTLINES)}")
    try:
        return hull(points_of(item["points"]["exterior"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"objects[{i}]: expected points with an exterior: {error}") from error
