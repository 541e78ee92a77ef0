"""Supervisely: a folder with `ann/` and `img/`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vrft.data.bad_records import BadRecords
from vrft.data.box_data import AnnotatedData, Corners, Entry
from vrft.data.files import brief, hull, points_of, require_object, size_of
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
                objects = [require_object(item, f"objects[{i}]") for i, item in enumerate(content["objects"])]
                boxes = [(item.get("classTitle", ""), _corners(i, item)) for i, item in enumerate(objects)]
                image = find_image(file.name.removesuffix(".json"), [annotations / "img" if images is None else images])
                yield Entry(image, str(file), size_of(size.get("width"), size.get("height")), boxes)
            except ValueError as error:
                bad_records.add(str(file), str(error).removeprefix(f"{file}: "))


def _corners(i: int, item: dict[str, Any]) -> Corners:
    kind = item.get("geometryType", "polygon")
    if kind not in OUTLINES:
        raise ValueError(f"objects[{i}]: {brief(kind)} has no box; expected {', '.join(OUTLINES)}")
    try:
        return hull(points_of(item["points"]["exterior"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"objects[{i}]: expected points with an exterior: {error}") from error
