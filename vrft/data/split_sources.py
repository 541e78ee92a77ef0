"""Files and folders of the splits in a config."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from vrft.data.record import Split
from vrft.errors import ConfigurationError


def given(train: str, val: str | None, test: str | None) -> dict[Split, str]:
    """Return the sources of the configured splits."""
    sources: dict[Split, str | None] = {"train": train, "val": val, "test": test}
    return {split: source for split, source in sources.items() if source is not None}


def annotated(annotations: dict[Split, str], images: dict[Split, str | None]) -> dict[Split, tuple[Path, Path | None]]:
    """Return the annotations of each split with the folder of its images, or None if no folder is given.

    Raises:
        ConfigurationError: a split has a folder of images but no annotations.
    """
    for split, folder in images.items():
        if folder is not None and split not in annotations:
            raise ConfigurationError(f"data.{split}_images: expected data.{split}_annotations too")
    folders = {split: None if folder is None else Path(folder) for split, folder in images.items()}
    return {split: (Path(file), folders[split]) for split, file in annotations.items()}


HELD_OUT_NAMES = ("val", "valid", "validation")
"""Words that replace "train" in the names of files and folders of held-out samples."""


class OtherHeldOut(NamedTuple):
    """Held-out samples in the data source of a run that holds out training samples."""

    place: str
    """File, folder or split, for messages."""
    setting: str = ""
    """Setting that would select the samples; empty if the config already names them."""


def beside(train: Path | str, setting: str, used: Collection[Path | str] = ()) -> OtherHeldOut | None:
    """Return the held-out file or folder beside that of the training samples, or None if there is none.

    Args:
        train: file or folder of the training samples, e.g. `train.json` or `train/_annotations.coco.json`.
        setting: setting that would select the result.
        used: files and folders that the config names.
    """
    path = Path(train)
    for name in HELD_OUT_NAMES if path.name else ():
        for found in (
            path.with_name(path.name.replace("train", name)),
            path.parent.with_name(name) / path.name if path.parent.name == "train" else path,
        ):
            if found != path and found not in map(Path, used) and found.exists():
                return OtherHeldOut(str(found), f"{setting}={found}")
    return None
