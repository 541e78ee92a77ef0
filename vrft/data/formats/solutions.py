"""Visual-RFT's data format, images with a problem and a solution as text, and the JSON lines files that use it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vrft.boxes import Coordinates, frame_of
from vrft.data.bad_records import BadRecords
from vrft.data.files import (
    brief,
    decode_json,
    is_file_name,
    is_id,
    is_text,
    read_lines,
    refuse_fractions,
    require_file,
)
from vrft.data.image_folders import ImageFolders
from vrft.data.images import ImageSource
from vrft.data.record import Record, Split
from vrft.data.records import RecordData
from vrft.data.several_images import place_problem
from vrft.data.split_sources import OtherHeldOut, beside, given
from vrft.tasks import Task
from vrft.types import Frame, Target

IMAGE_FIELDS = ("image", "images", "image_index")

UNBOUNDED = 10**9
"""Side of a frame larger than any image, used while the image's size is unknown."""


class SolutionData(RecordData):
    """Base class of data whose `problem` is the whole question and whose `solution` the task parses.

    Use `task.template="{query}"`.
    """

    test_setting = "data.test"

    def __init__(self, sources: dict[Split, str], coordinates: Coordinates, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.sources, self.coordinates = sources, coordinates
        self.selection.check_held_out("val" in sources, "val")

    def splits(self) -> Collection[Split]:
        return self.sources

    @abstractmethod
    def rows(self, split: Split) -> Iterator[tuple[str, Any]]:
        """Yield the location and the content of each row: images, problem, solution and other fields."""

    @abstractmethod
    def images(self, split: Split, index: int, row: dict[str, Any]) -> tuple[ImageSource, ...]:
        """Return the images of a row. Raise ValueError if they are invalid."""

    def records(self, split: Split, bad_records: BadRecords) -> list[Record]:
        """Read the rows. Boxes are preliminary until `finish`, when the sizes of the images are known."""
        found = []
        for index, (location, row) in enumerate(self.rows(split)):
            try:
                check_row(row)
                images = self.images(split, index, row)
                if problem := place_problem(row.get("image_index"), len(images)):
                    raise ValueError(problem)
            except ValueError as error:
                bad_records.add(location, str(error))
                continue
            metadata = {key: value for key, value in row.items() if key not in IMAGE_FIELDS and key != "problem"}
            place, problem = row.get("image_index"), row["problem"].strip()
            record = Record(images, location, index, problem, "", metadata=metadata, image_index=place)
            target = self._read(record, (UNBOUNDED, UNBOUNDED), Frame(UNBOUNDED, UNBOUNDED), bad_records)
            if target is not None:
                found.append(replace(record, target=target))
        return found

    def finish(self, records: list[Record], bad_records: BadRecords) -> list[Record]:
        found = []
        for record in records:
            target = self._read(record, record.size, frame_of(self.coordinates, record.size), bad_records)
            if target is not None:
                found.append(replace(record, target=target))
        if self.coordinates != "unit" and found:
            refuse_fractions(found[0].location, self._stated_boxes(found))
        return found

    def _stated_boxes(self, records: Sequence[Record]) -> Iterator[Sequence[float]]:
        """Yield the boxes of targets in the coordinates of the solutions."""
        for record in records:
            width, height, _ = frame_of(self.coordinates, record.size)
            scale = (width / record.size[0], height / record.size[1]) * 2
            for found in record.target if isinstance(record.target, tuple) else ():
                yield [value * factor for value, factor in zip(found.box, scale, strict=True)]

    def _read(self, record: Record, size: tuple[int, int], frame: Frame, bad_records: BadRecords) -> Target | None:
        assert self.trainer is not None
        task: Task = self.trainer.lightning_module.task  # type: ignore[assignment]
        solution = record.metadata["solution"]
        target = task.read_solution(solution, replace(record, size=size), frame)
        if target is None:
            bad_records.add(record.location, f"solution can't be read by {type(task).__name__}: {brief(solution)}")
        return target


def check_row(row: Any) -> None:
    """Raise ValueError if a row is invalid. The images are not checked."""
    if isinstance(row, ValueError):
        raise ValueError(f"not JSON: {row}")
    if not isinstance(row, dict):
        raise ValueError(f"expected an object, got {brief(row)}")
    for key in ("problem", "solution"):
        if not is_text(row.get(key)):
            raise ValueError(f"{key}: expected text, got {brief(row.get(key))}")
    choices = row.get("choices", [])
    if not isinstance(choices, list) or not all(map(is_text, choices)):
        raise ValueError(f"choices: expected a list of texts, got {brief(choices)}")
    place = row.get("image_index")
    if place is not None and not is_id(place):
        raise ValueError(f"image_index: expected a whole number, got {brief(place)}")


class JsonlData(SolutionData):
    """JSON lines `{"image": relative path, "problem": text, "solution": text}`; other fields become metadata.

    A question about several images has `"images": [relative path, ...]` and, if its solution has boxes, `image_index`,
    the index from 0 of the image that they belong to.
    """

    def __init__(
        self,
        train: str,
        val: str | None = None,
        coordinates: Coordinates = "thousandths",
        test: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Set the files, which are read when training starts.

        Args:
            train: training file.
            val: held-out file; default: see `val_fraction`.
            coordinates: unit of boxes in solutions: thousandths of the image, pixels, or 0..1.
            test: file or dataset for `test`; default: the held-out one.
            kwargs: see `RecordData`.
        """
        sources = given(train, val, test)
        super().__init__(sources, coordinates, **kwargs)
        for split, name in sources.items():
            require_file(split, Path(name), "JSON lines")

    def rows(self, split: Split) -> Iterator[tuple[str, Any]]:
        path = Path(self.sources[split])
        for location, line in read_lines(path, self.encoding):
            yield location, _parse(line)

    def other_held_out(self) -> OtherHeldOut | None:
        if "val" in self.sources:
            return OtherHeldOut(str(self.sources["val"]))
        return beside(self.sources["train"], "data.val", self.sources.values())

    def image_folders(self, split: Split) -> ImageFolders:
        return ImageFolders("image", (Path(self.sources[split]).parent,))

    def images(self, split: Split, index: int, row: dict[str, Any]) -> tuple[ImageSource, ...]:
        several = row.get("images")
        if several is None and not is_file_name(row.get("image")):
            raise ValueError(f"image: expected one, got {brief(row.get('image'))}")
        if several is not None and row.get("image") is not None:
            raise ValueError("expected either image or images, got both")
        if several is not None and not (isinstance(several, list) and several and all(map(is_file_name, several))):
            raise ValueError(f"images: expected a list of relative paths, got {brief(several)}")
        return tuple(Path(self.sources[split]).parent / name for name in several or [row["image"]])


def _parse(line: str) -> Any:
    try:
        return decode_json(line)
    except ValueError as error:
        return error
