"""The datasets of Visual-RFT's classification experiments, read from their original files.

Training uses the official training split; the official test split is held out.
"""

from __future__ import annotations

import subprocess
import sys
from abc import abstractmethod
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vrft.data.bad_records import BadRecords
from vrft.data.files import brief, decode_json, is_file_name, is_text, read_lines
from vrft.data.image_folders import ImageFolders
from vrft.data.record import Record, Split
from vrft.data.records import RecordData
from vrft.errors import ConfigurationError


class Labelled(NamedTuple):
    """An image, its class name, and the location of both for messages."""

    image: Path
    name: str
    location: str


class BenchmarkData(RecordData):
    """Base class of datasets with an official split. A subclass reads the files."""

    noun = "class"
    test_setting = "no setting (the official test split is held out already)"
    files: Sequence[str]
    """Required files below the root; "a or b" if either suffices."""
    subfolder = ""
    """Optional subfolder of the root that holds the files."""

    def __init__(self, root: str, with_valid: bool = False, **kwargs: Any) -> None:
        """Set the folder, which is read when training starts.

        Args:
            root: folder with the unpacked dataset.
            with_valid: train on the official validation split too, if the dataset has one.
            kwargs: see `RecordData`.
        """
        super().__init__(**kwargs)
        nested = Path(root) / self.subfolder
        self.root, self.with_valid = nested if nested.is_dir() else Path(root), with_valid
        for name in self.files:
            if not any((self.root / path).exists() for path in name.split(" or ")):
                raise ConfigurationError(f"data.root: no such file: {self.root / name}; expected {type(self).__doc__}")

    def splits(self) -> Collection[Split]:
        return ["train", "val"]

    def image_folders(self, split: Split) -> ImageFolders:
        return ImageFolders("image", (self.root,))

    @abstractmethod
    def read(self, split: Split, bad_records: BadRecords) -> Iterator[Labelled]:
        """Yield the images of a split, in the order of the files."""

    def records(self, split: Split, bad_records: BadRecords) -> list[Record]:
        found: dict[Path, Record] = {}
        for image, name, location in self.read(split, bad_records):
            if image in found:
                bad_records.add(location, f"{image.name} appears twice; first in {found[image].location}")
            else:
                found[image] = Record((image,), location, len(found), "", name)
        return list(found.values())


class FlowersData(BenchmarkData):
    """Oxford Flowers-102: jpg/, imagelabels.mat and setid.mat."""

    files = ("jpg", "imagelabels.mat", "setid.mat")

    def read(self, split: Split, bad_records: BadRecords) -> Iterator[Labelled]:
        labels = _list(self.root / "imagelabels.mat", "labels")
        lists = ["tstid"] if split != "train" else ["trnid", *(["valid"] if self.with_valid else [])]
        names = FLOWERS.replace("\n", " ").split(", ")
        for name in lists:
            for i, value in enumerate(_list(self.root / "setid.mat", name)):
                number = as_integer(value)
                location = f"{self.root / 'setid.mat'}: {name}[{i}] (id {number})"
                if not 1 <= number <= len(labels):
                    bad_records.add(location, f"expected an image number from 1 to {len(labels)}")
                elif not 1 <= as_integer(labels[number - 1]) <= len(names):
                    bad_records.add(location, f"imagelabels.mat: labels[{number - 1}]: expected 1 to {len(names)}")
                else:
                    label = as_integer(labels[number - 1])
                    yield Labelled(self.root / "jpg" / f"image_{number:05d}.jpg", names[label - 1], location)


class PetsData(BenchmarkData):
    """Oxford-IIIT Pets: images/ and annotations/ with trainval.txt and test.txt."""

    files = ("images", "annotations/trainval.txt", "annotations/test.txt")

    def read(self, split: Split, bad_records: BadRecords) -> Iterator[Labelled]:
        path = self.root / "annotations" / ("test.txt" if split != "train" else "trainval.txt")
        for location, line in read_lines(path, self.encoding):
            stem = line.split()[0]
            name, _, number = stem.rpartition("_")
            if name and number.isdecimal() and is_file_name(stem):
                yield Labelled(self.root / "images" / f"{stem}.jpg", name.replace("_", " "), location)
            elif not line.startswith("#"):
                bad_records.add(location, f"expected a line like 'Abyssinian_100 1 1 1', got {brief(line)}")


class AircraftData(BenchmarkData):
    """FGVC-Aircraft: data/ with images/ and images_variant_train.txt, images_variant_val.txt, images_variant_test.txt.

    The bottom 20 pixels of each image, which show the photographer's name, are kept.
    """

    files = ("images", "images_variant_train.txt", "images_variant_test.txt")
    subfolder = "data"

    def read(self, split: Split, bad_records: BadRecords) -> Iterator[Labelled]:
        official = ["test"] if split != "train" else ["train", *(["val"] if self.with_valid else [])]
        for variant_list in official:
            for location, line in read_lines(self.root / f"images_variant_{variant_list}.txt", self.encoding):
                number, _, name = line.partition(" ")
                if number.isdecimal() and is_file_name(number) and name.strip():
                    yield Labelled(self.root / "images" / f"{number}.jpg", name.strip(), location)
                else:
                    bad_records.add(location, f"expected an image number and a variant, got {brief(line)}")


class CarsData(BenchmarkData):
    """Stanford Cars: cars_train/, cars_test/, cars_test_annos_withlabels.mat, devkit/ with its .mat files."""

    files = (
        "cars_train",
        "cars_test",
        "devkit/cars_meta.mat",
        "devkit/cars_train_annos.mat",
        "cars_test_annos_withlabels.mat or devkit/cars_test_annos_withlabels.mat",
    )

    def read(self, split: Split, bad_records: BadRecords) -> Iterator[Labelled]:
        meta = self.root / "devkit" / "cars_meta.mat"
        names = _list(meta, "class_names")
        test = self.root / "cars_test_annos_withlabels.mat"
        test = test if test.exists() else self.root / "devkit" / test.name
        path, folder = (test, "cars_test") if split != "train" else (self.root / self.files[3], "cars_train")
        table = _variable(path, "annotations")
        if not isinstance(table, dict) or not {"fname", "class"} <= {*table}:
            raise ConfigurationError(f"{path}: annotations: expected the fields fname and class")
        for i, (image, value) in enumerate(zip(table["fname"], table["class"], strict=True)):
            number = as_integer(value)
            location = f"{path}: annotations[{i}] ({brief(image)})"
            if not is_file_name(image):
                bad_records.add(location, "expected fname to be a file name")
            elif not 1 <= number <= len(names) or not is_text(names[number - 1]):
                bad_records.add(location, f"expected a class from 1 to {len(names)} with a name, got {brief(value)}")
            else:
                yield Labelled(self.root / folder / Path(image).name, names[number - 1], location)


MAT_READER = """
import json, sys
import numpy as np
from scipy.io import loadmat

path, name = sys.argv[1:]
value = loadmat(path, appendmat=False, squeeze_me=True, variable_names=[name]).get(name)
if value is not None:
    value = np.atleast_1d(value).ravel()
    value = {key: value[key].tolist() for key in value.dtype.names} if value.dtype.names else value.tolist()
json.dump(value, sys.stdout, default=lambda other: other.tolist())
"""
"""A script that prints a variable of a MATLAB file as JSON: its elements, or those of each field."""


def _variable(path: Path, name: str) -> Any:
    """Read a variable of a MATLAB file in a subprocess, because SciPy crashes on some broken files.

    Raises:
        ConfigurationError: the file is not a MATLAB file, or lacks the variable.
    """
    if not path.is_file():
        raise ConfigurationError(f"{path}: not a readable MATLAB file: expected a regular file")
    command = [sys.executable, "-P", "-c", MAT_READER, str(path), name]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().rpartition("\n")[2] or "SciPy crashes"
        raise ConfigurationError(f"{path}: not a readable MATLAB file: {brief(reason)}")
    try:
        value = decode_json(done.stdout)
    except ValueError as error:
        raise ConfigurationError(f"{path}: {name}: {error}") from error
    if value is None:
        raise ConfigurationError(f"{path}: no variable {name!r}")
    return value


def _list(path: Path, name: str) -> list[Any]:
    value = _variable(path, name)
    if not isinstance(value, list):
        raise ConfigurationError(f"{path}: {name}: expected a list, got {brief(value)}")
    return value


def as_integer(value: Any) -> int:
    """Convert an element of a MATLAB array, where 3 may be stored as 3.0. Return -1 if it is not an integer."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        return -1
    return int(value)


FLOWERS = """\
pink primrose, hard-leaved pocket orchid, canterbury bells, sweet pea, english marigold, tiger lily, moon orchid,
bird of paradise, monkshood, globe thistle, snapdragon, colt's foot, king protea, spear thistle, yellow iris,
globe-flower, purple coneflower, peruvian lily, balloon flower, giant white arum lily, fire lily, pincushion flower,
fritillary, red ginger, grape hyacinth, corn poppy, prince of wales feathers, stemless gentian, artichoke,
sweet william, carnation, garden phlox, love in the mist, mexican aster, alpine sea holly, ruby-lipped cattleya,
cape flower, great masterwort, siam tulip, lenten rose, barbeton daisy, daffodil, sword lily, poinsettia,
bolero deep blue, wallflower, marigold, buttercup, oxeye daisy, common dandelion, petunia, wild pansy, primula,
sunflower, pelargonium, bishop of llandaff, gaura, geranium, orange dahlia, pink-yellow dahlia, cautleya spicata,
japanese anemone, black-eyed susan, silverbush, californian poppy, osteospermum, spring crocus, bearded iris,
windflower, tree poppy, gazania, azalea, water lily, rose, thorn apple, morning glory, passion flower, lotus,
toad lily, anthurium, frangipani, clematis, hibiscus, columbine, desert-rose, tree mallow, magnolia, cyclamen,
watercress, canna lily, hippeastrum, bee balm, ball moss, foxglove, bougainvillea, camellia, mallow,
mexican petunia, bromelia, blanket flower, trumpet creeper, blackberry lily"""
"""Names of the 102 classes in the order of their labels."""
