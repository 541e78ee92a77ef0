"""Images with a problem and a solution in text, as the data sets of Visual-RFT were released: JSON lines, or the Hub."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from vrft.data.coco import shown
from vrft.data.images import BadImage, ImageSource
from vrft.data.records import Part, Problems, Record, RecordData
from vrft.errors import ConfigurationError
from vrft.tasks import Task
from vrft.types import Frame

Coordinates = Literal["thousandths", "pixels", "unit"]


class SolutionData(RecordData):
    """Records whose problem is the question as it is, and whose solution the task reads. Use the template "{query}"."""

    def __init__(self, sources: dict[Part, str], coordinates: Coordinates, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.sources, self.coordinates = sources, coordinates
        if "val" not in sources and self.val_fraction is None:
            raise ConfigurationError("data.val: expected held-out data, or data.val_fraction")

    @abstractmethod
    def rows(self, part: Part) -> Iterator[tuple[str, Any]]:
        """Where each row stands, and the row: image, problem, solution and anything else."""

    @abstractmethod
    def image(self, part: Part, index: int, row: dict[str, Any]) -> ImageSource | None:
        """The image of a row, None if it has none."""

    def records(self, part: Part, problems: Problems) -> list[Record]:
        found = []
        for index, (where, row) in enumerate(self.rows(part)):
            reason = _reason(row)
            image = None if reason else self.image(part, index, row)
            if reason is not None or image is None:
                problems.add(where, reason or f"image: expected one, got {shown(row.get('image'))}")
                continue
            metadata = {key: value for key, value in row.items() if key not in ("image", "problem", "solution")}
            found.append(Record(image, where, index, row["problem"], row["solution"], metadata=metadata))
        return found

    def finish(self, records: list[Record], problems: Problems) -> list[Record]:
        assert self.trainer is not None
        task: Task = self.trainer.lightning_module.task  # type: ignore[assignment]
        found = []
        for record in records:
            frame = {"thousandths": Frame(1000, 1000), "pixels": Frame(*record.size), "unit": Frame(1, 1, 3)}
            target = task.read_solution(str(record.target), record, frame[self.coordinates])
            if target is None:
                problems.add(record.where, f"solution: can't be read as {type(task).__name__}: {shown(record.target)}")
            else:
                found.append(replace(record, target=target))
        return found


def _reason(row: Any) -> str | None:
    """What is wrong with a row."""
    if not isinstance(row, dict):
        return f"expected an object, got {shown(row)}"
    for key in ("problem", "solution"):
        if not isinstance(row.get(key), str):
            return f"{key}: expected text, got {shown(row.get(key))}"
    return None


class JsonlData(SolutionData):
    """JSON lines `{"image": path beside the file, "problem": text, "solution": text}`; other fields are metadata."""

    def __init__(
        self, train: str, val: str | None = None, coordinates: Coordinates = "thousandths", **kwargs: Any
    ) -> None:
        """Names the files; they are read when training starts.

        Args:
            train: file to train on.
            val: file of held-out records; default: see `val_fraction`.
            coordinates: of boxes in solutions: thousandths of the image, its pixels, or 0..1.
            kwargs: see `RecordData`.
        """
        sources: dict[Part, str] = {"train": train} if val is None else {"train": train, "val": val}
        super().__init__(sources, coordinates, **kwargs)
        for part, name in sources.items():
            if not Path(name).is_file():
                raise ConfigurationError(f"data.{part}: no such file: {name}; expected JSON lines")

    def rows(self, part: Part) -> Iterator[tuple[str, Any]]:
        path = Path(self.sources[part])
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"{path}: line {number}", _parse(line)

    def image(self, part: Part, index: int, row: dict[str, Any]) -> ImageSource | None:
        name = row.get("image")
        return Path(self.sources[part]).parent / name if isinstance(name, str) else None


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"not JSON: {error}"


@dataclass(frozen=True)
class HubImage:
    """An image in a row of a data set, read when it is asked for."""

    rows: Any
    index: int

    def read(self) -> bytes:
        cell = self.rows[self.index]["image"]
        if cell["bytes"] is not None:
            return bytes(cell["bytes"])
        try:
            return Path(cell["path"]).read_bytes()
        except (OSError, TypeError) as error:
            raise BadImage(f"can't be opened: {error}") from error

    def __str__(self) -> str:
        return f"row {self.index}"


class HubData(SolutionData):
    """A Hugging Face data set with the columns image, problem and solution; other columns are metadata."""

    def __init__(
        self,
        train: str,
        val: str | None = None,
        split: str = "train",
        coordinates: Coordinates = "thousandths",
        **kwargs: Any,
    ) -> None:
        """Names the data sets; they are read when training starts.

        Args:
            train: a name on the Hub, a folder of parquet files, a parquet file, or what `save_to_disk` wrote.
            val: the same, held out; default: see `val_fraction`.
            split: of a data set that has several.
            coordinates: of boxes in solutions: thousandths of the image, its pixels, or 0..1.
            kwargs: see `RecordData`.
        """
        sources: dict[Part, str] = {"train": train} if val is None else {"train": train, "val": val}
        super().__init__(sources, coordinates, **kwargs)
        self.split = split
        self.tables: dict[Part, Any] = {}

    def rows(self, part: Part) -> Iterator[tuple[str, Any]]:
        table = load_table(self.sources[part], self.split, f"data.{part}")
        self.tables[part] = table
        for index, row in enumerate(table.remove_columns("image")):
            yield f"{self.sources[part]}: row {index}", row

    def image(self, part: Part, index: int, row: dict[str, Any]) -> ImageSource | None:
        return HubImage(self.tables[part], index)


def load_table(name: str, split: str, field: str) -> Any:
    """A data set whose images are bytes, not pixels.

    Raises:
        ConfigurationError: `datasets` is not installed, or there is no such data set, or it lacks a column.
    """
    try:
        import datasets
    except ImportError as error:
        raise ConfigurationError(f"{field}: this needs `pip install 'vrft[hub]'`") from error
    path = Path(name)
    try:
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            table = datasets.load_from_disk(name)
            table = table[split] if isinstance(table, datasets.DatasetDict) else table
        elif path.exists():
            files = [str(path)] if path.is_file() else sorted(map(str, path.rglob("*.parquet")))
            table = datasets.load_dataset("parquet", data_files=files, split="train")
        else:
            table = datasets.load_dataset(name, split=split)
    except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
        raise ConfigurationError(f"{field}: {name} can't be read as a data set: {error}") from error
    if missing := {"image", "problem", "solution"}.difference(table.column_names):
        raise ConfigurationError(f"{field}: {name}: no column {min(missing)!r}; it has {', '.join(table.column_names)}")
    return table.cast_column("image", datasets.Image(decode=False))
