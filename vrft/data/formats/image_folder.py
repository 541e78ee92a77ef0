"""Images with one class name each, in a folder per class."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from vrft.data.bad_records import BadRecords
from vrft.data.files import require_folder
from vrft.data.folders import find_images, subfolders
from vrft.data.image_folders import ImageFolders
from vrft.data.record import Record, Split
from vrft.data.records import RecordData
from vrft.data.split_sources import OtherHeldOut
from vrft.errors import ConfigurationError

FOLDERS: dict[Split, tuple[str, ...]] = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
"""Accepted names of each split's folder."""


class ImageFolderData(RecordData):
    """Images in `root/train/<class name>/`, `root/val/<class name>/` and optionally `root/test/<class name>/`.

    With `val_fraction` or `val_shots`, the class folders may also lie in `root` itself.
    """

    noun = "class"
    test_setting = "a folder `test` beside `train`"

    def __init__(self, root: str, **kwargs: Any) -> None:
        """Set the folder, which is read when training starts.

        Args:
            root: folder with `train`, `val` (or `valid`) and `test`, each with a subfolder per class.
            kwargs: see `RecordData`.
        """
        super().__init__(**kwargs)
        self.root = Path(root)
        self.check_paths()

    def check_paths(self) -> None:
        """Raise ConfigurationError if a folder is missing."""
        require_folder("root", self.root, "a folder with train/<class name>/*.jpg")
        inner = self.val_fraction is not None or self.val_shots is not None
        if not inner:
            for split in ("train", "val"):
                hint = "; data.val_fraction=0.1 holds out a tenth of train, or of class folders in data.root itself"
                require_folder("root", self.folder(split), f"{self.root}/{split}/<class name>/*.jpg{hint}")
        elif self.folder("train") == self.root:
            for name in (*FOLDERS["val"], *FOLDERS["test"]):
                if (self.root / name).is_dir():
                    raise ConfigurationError(f"data.root: {self.root} has a folder {name}, but none called train")

    def folder(self, split: Split) -> Path:
        """Return the folder of a split, which may not exist."""
        found = [self.root / name for name in FOLDERS[split] if (self.root / name).is_dir()]
        if len(found) > 1:
            raise ConfigurationError(f"data.root: expected one of {found[0]} and {found[1]}, not both")
        inner = self.val_fraction is not None or self.val_shots is not None
        return found[0] if found else self.root if split == "train" and inner else self.root / split

    def splits(self) -> Collection[Split]:
        return [split for split in FOLDERS if self.folder(split).is_dir()]

    def other_held_out(self) -> OtherHeldOut | None:
        return OtherHeldOut(str(self.folder("val"))) if "val" in self.splits() else None

    def image_folders(self, split: Split) -> ImageFolders:
        return ImageFolders("data.root", (self.root,))

    def records(self, split: Split, bad_records: BadRecords) -> list[Record]:
        folder = self.folder(split)
        counts = bad_records.passed_over
        files = []
        for classes in subfolders(folder, counts):
            found = find_images(classes, counts, self.required_folders(split))
            files += [(file, classes.name) for file in found]
            counts["class folders without images"] += not found
        counts["files outside of class folders"] += sum(path.is_file() for path in folder.iterdir())
        if not files:
            raise ConfigurationError(f"{folder}: no images; expected {folder}/<class name>/*.jpg")
        return labelled_records(files, [file.relative_to(self.root).as_posix() for file, _ in files])


def labelled_records(files: Sequence[tuple[Path, str]], locations: Sequence[str]) -> list[Record]:
    """Return a record for each pair of image and class name. `locations` name the records in messages."""
    return [
        Record((file,), location, index, "", label)
        for index, ((file, label), location) in enumerate(zip(files, locations, strict=True))
    ]
