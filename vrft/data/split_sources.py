"""Files and folders of the splits that a config names."""

from __future__ import annotations

from pathlib import Path

from vrft.data.record import Split
from vrft.errors import ConfigurationError


def given(train: str, val: str | None, test: str | None) -> dict[Split, str]:
    """Return the sources of the splits that have one."""
    sources: dict[Split, str | None] = {"train": train, "val": val, "test": test}
    return {split: source for split, source in sources.items() if source is not None}


def annotated(annotations: dict[Split, str], images: dict[Split, str | None]) -> dict[Split, tuple[Path, Path | None]]:
    """Return the annotations of each split with the folder of its images, None where no folder is given.

    Raises:
        ConfigurationError: a split has a folder of images but no annotations.
    """
    for split, folder in images.items():
        if folder is not None and split not in annotations:
            raise ConfigurationError(f"data.{split}_images: expected data.{split}_annotations too")
    folders = {split: None if folder is None else Path(folder) for split, folder in images.items()}
    return {split: (Path(file), folders[split]) for split, file in annotations.items()}
