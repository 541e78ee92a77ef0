"""Images with a problem and a solution as text, the format of Visual-RFT's data, and JSON lines of these."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vrft.boxes import Coordinates, frame_of
from vrft.data.bad_records import BadRecords
from vrft.data.files import brief, decode_json, is_file_name, is_text, read_lines, refuse_fractions, require_file
from vrft.data.image_folders import ImageFolders
from vrft.data.images import ImageSource
from vrft.data.record import Record, Split
from vrft.data.records import RecordData
from vrft.data.split_sources import OtherHeldOut, beside, given
from vrft.tasks import Task
from vrft.types import Frame, Target

UNBOUNDED = 10**9
"""Side of a frame that holds the coordinates of any image, used while the image's size is unknown."""


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
        """Yield the location and the content of each row: image, problem, solution and any other fields."""

    @abstractmethod
    def image(self, split: Split, index: int, row: dict[str, Any]) -> ImageSource | None:
        """Return the image of a row, or None if it has none."""

    def records(self, split: Split, bad_records: BadRecords) -> list[Record]:
        """Read the rows. Boxes are preliminary until `finish`, when the sizes of the images are known."""
        found = []
        for index, (location, row) in enumerate(self.rows(split)):
            reason = _reason(row)
            image = None if reason else self.image(split, index, row)
            if reason is not None or image is None:
                bad_records.add(location, reason or f"image: expected one, got {brief(row.get('image'))}")
                continue
            metadata = {key: value for key, value in row.items() if key not in ("image", "problem")}
            record = Record(image, location, index, row["problem"].strip(), "", metadata=metadata)
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


def _reason(row: Any) -> str | None:
    """Return why a row is invalid, or None if it is valid."""
    if isinstance(row, ValueError):
        return f"not JSON: {row}"
    if not isinstance(row, dict):
        return f"expected an object, got {brief(row)}"
    for key in ("problem", "solution"):
        if not is_text(row.get(key)):
            return f"{key}: expected text, got {brief(row.get(key))}"
    choices = row.get("choices", [])
    if not isinstance(choices, list) or not all(map(is_text, choices)):
        return f"choices: expected a list of texts, got {brief(choices)}"
    return None


class JsonlData(SolutionData):
    """JSON lines `{"image": relative path, "problem": text, "solution": text}`; other fields become metadata."""

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

    def image(self, split: Split, index: int, row: dict[str, Any]) -> ImageSource | None:
        name = row.get("image")
        return Path(self.sources[split]).parent / name if is_file_name(name) else None


def _parse(line: str) -> Any:
    try:
        return decode_json(line)
    except ValueError as error:
        return error
