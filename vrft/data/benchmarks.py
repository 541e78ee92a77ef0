"""The data sets of the paper's classification experiments, in the files that they are distributed in.

Each has a fixed split: part "train" to train on, the official test part held out.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vrft.data.records import Part, Problems, Record, RecordData
from vrft.errors import ConfigurationError


class Labelled(NamedTuple):
    """An image, its class name, and where both stand."""

    image: Path
    name: str
    where: str


class BenchmarkData(RecordData):
    """A data set with an official split. A subclass reads its files."""

    files: Sequence[str]
    """Files below the root without which there is no data set."""

    def __init__(self, root: str, with_valid: bool = False, **kwargs: Any) -> None:
        """Names the folder; it is read when training starts.

        Args:
            root: folder that the data set was unpacked into.
            with_valid: train on the official validation part as well, where there is one.
            kwargs: see `RecordData`.
        """
        super().__init__(**kwargs)
        self.root, self.with_valid = Path(root), with_valid
        for name in self.files:
            if not (self.root / name).exists():
                raise ConfigurationError(f"data.root: no such file: {self.root / name}; expected {type(self).__doc__}")

    @abstractmethod
    def read(self, part: Part, problems: Problems) -> Iterator[Labelled]:
        """The images of a part, in the order of the files."""

    def records(self, part: Part, problems: Problems) -> list[Record]:
        return [
            Record(image, where, index, "", name)
            for index, (image, name, where) in enumerate(self.read(part, problems))
        ]


class FlowersData(BenchmarkData):
    """Oxford Flowers-102: jpg/, imagelabels.mat and setid.mat."""

    files = ("jpg", "imagelabels.mat", "setid.mat")

    def read(self, part: Part, problems: Problems) -> Iterator[Labelled]:
        labels = _vector(self.root / "imagelabels.mat", "labels")
        splits = ["tstid"] if part == "val" else ["trnid", *(["valid"] if self.with_valid else [])]
        names = FLOWERS.replace("\n", " ").split(", ")
        for split in splits:
            for i, number in enumerate(_vector(self.root / "setid.mat", split)):
                where = f"{self.root / 'setid.mat'}: {split}[{i}]"
                if not 1 <= number <= len(labels):
                    problems.add(where, f"there is no image {number}; there are {len(labels)}")
                elif not 1 <= labels[number - 1] <= len(names):
                    problems.add(f"{self.root / 'imagelabels.mat'}: labels[{number - 1}]", "expected 1 to 102")
                else:
                    yield Labelled(self.root / "jpg" / f"image_{number:05d}.jpg", names[labels[number - 1] - 1], where)


class PetsData(BenchmarkData):
    """Oxford-IIIT Pets: images/ and annotations/ with trainval.txt and test.txt."""

    files = ("images", "annotations/trainval.txt", "annotations/test.txt")

    def read(self, part: Part, problems: Problems) -> Iterator[Labelled]:
        path = self.root / "annotations" / ("test.txt" if part == "val" else "trainval.txt")
        for where, line in _lines(path):
            name, _, number = line.split()[0].rpartition("_")
            if name and number.isdecimal():
                yield Labelled(self.root / "images" / f"{line.split()[0]}.jpg", name.replace("_", " "), where)
            else:
                problems.add(where, f"expected a name like Abyssinian_100 and its class, got {line!r}")


class AircraftData(BenchmarkData):
    """FGVC-Aircraft: data/ with images/ and images_variant_train.txt, images_variant_val.txt, images_variant_test.txt.

    The lowest 20 pixels of its images name the photographer; they are not cut off.
    """

    files = ("data/images", "data/images_variant_train.txt", "data/images_variant_test.txt")

    def read(self, part: Part, problems: Problems) -> Iterator[Labelled]:
        splits = ["test"] if part == "val" else ["train", *(["val"] if self.with_valid else [])]
        for split in splits:
            for where, line in _lines(self.root / "data" / f"images_variant_{split}.txt"):
                number, _, name = line.partition(" ")
                if number.isdecimal() and name.strip():
                    yield Labelled(self.root / "data" / "images" / f"{number}.jpg", name.strip(), where)
                else:
                    problems.add(where, f"expected the number of an image and its variant, got {line!r}")


class CarsData(BenchmarkData):
    """Stanford Cars: cars_train/, cars_test/, cars_test_annos_withlabels.mat, devkit/ with its .mat files."""

    files = (
        "cars_train",
        "cars_test",
        "devkit/cars_meta.mat",
        "devkit/cars_train_annos.mat",
        "cars_test_annos_withlabels.mat",
    )

    def read(self, part: Part, problems: Problems) -> Iterator[Labelled]:
        meta = self.root / "devkit" / "cars_meta.mat"
        names = [str(name) for name in _variable(meta, "class_names").flatten()]
        test = self.root / "cars_test_annos_withlabels.mat"
        path, folder = (test, "cars_test") if part == "val" else (self.root / self.files[3], "cars_train")
        table = _variable(path, "annotations")
        if not {"fname", "class"} <= {*(table.dtype.names or ())}:
            raise ConfigurationError(f"{path}: annotations: expected the fields fname and class")
        for i, (file, number) in enumerate(zip(table["fname"].flatten(), table["class"].flatten(), strict=True)):
            where = f"{path}: annotations[{i}]"
            if isinstance(file, str) and isinstance(number, int) and 1 <= number <= len(names):
                yield Labelled(self.root / folder / Path(file).name, names[number - 1], where)
            else:
                problems.add(where, f"expected fname and a class from 1 to {len(names)}, got {file!r} and {number!r}")


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Lines of a text file that say something, each with where it stands."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: can't be read: {error}") from error
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.startswith("#"):
            yield f"{path}: line {number}", line.strip()


def _vector(path: Path, name: str) -> list[int]:
    values = _variable(path, name).flatten().tolist()
    if not all(isinstance(value, int) for value in values):
        raise ConfigurationError(f"{path}: {name}: expected integers")
    return values


def _variable(path: Path, name: str) -> Any:
    """A variable of a MATLAB file."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        content = loadmat(path, squeeze_me=True, chars_as_strings=True)
    except (OSError, ValueError, TypeError, NotImplementedError, MatReadError) as error:
        raise ConfigurationError(f"{path}: not a MATLAB file that can be read: {error}") from error
    if name not in content:
        raise ConfigurationError(f"{path}: no variable {name!r}")
    import numpy as np

    return np.atleast_1d(content[name])


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
