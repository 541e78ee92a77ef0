"""Flowers, pets, aircraft and cars: official folders and broken ones."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from tests.helpers import formats
from tests.helpers.data import refused, said_of, samples_of
from vrft.data import (
    AircraftData,
    CarsData,
    FlowersData,
    PetsData,
)
from vrft.data.datasets.benchmarks import FLOWERS
from vrft.errors import ConfigurationError
from vrft.tasks import ClassificationTask

pytestmark = pytest.mark.usefixtures("_forked_readers")

BENCHMARKS = [
    pytest.param(FlowersData, formats.write_flowers, ("pink primrose", "hard-leaved pocket orchid"), id="flowers"),
    pytest.param(PetsData, formats.write_pets, ("Abyssinian", "american bulldog"), id="pets"),
    pytest.param(AircraftData, formats.write_aircraft, formats.VARIANTS, id="aircraft"),
    pytest.param(CarsData, formats.write_cars, formats.MODELS, id="cars"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "write", "names"), BENCHMARKS)
def test_a_benchmark_has_its_classes_and_its_split(
    kind: Any, write: Any, names: tuple[str, ...], tmp_path: Path
) -> None:
    folder = write(tmp_path / "x", 5)
    train, val = samples_of(kind(str(folder)), tmp_path, ClassificationTask())
    for part, samples in (("train", train), ("val", val)):
        assert [sample.target for sample in samples] == [names[i % 2] for i in range(5)]
        for sample, (picture, _) in zip(samples, formats.colours(part, 5), strict=True):
            assert np.abs(np.asarray(sample.image, float) - np.asarray(picture)).mean() < 8  # JPEG is lossy
    again, _ = samples_of(kind(str(folder)), tmp_path, ClassificationTask())
    assert [sample.image_id for sample in again] == [sample.image_id for sample in train] == list(range(5))
    shots, _ = samples_of(kind(str(folder), shots=1), tmp_path, ClassificationTask())
    assert Counter(sample.target for sample in shots) == Counter(names)
    assert len(samples_of(kind(str(folder), val_fraction=0.2), tmp_path, ClassificationTask())[0]) == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "write"), [(FlowersData, formats.write_flowers), (AircraftData, formats.write_aircraft)]
)
def test_the_validation_images_may_be_trained_on(kind: Any, write: Any, tmp_path: Path) -> None:
    folder = write(tmp_path / "x")
    train, val = samples_of(kind(str(folder), with_valid=True), tmp_path, ClassificationTask())
    assert (len(train), len(val)) == (8, 4)
    assert len({np.asarray(sample.image).tobytes() for sample in train + val}) == 12


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "write", "names"), BENCHMARKS)
def test_a_missing_file_or_image_of_a_benchmark_is_named(kind: Any, write: Any, names: Any, tmp_path: Path) -> None:
    folder = write(tmp_path / "x")
    image = sorted(folder.rglob("*.jpg"))[0]
    image.unlink()
    assert f"{image}: no such image" in said_of(
        lambda **more: kind(str(folder), **more), tmp_path, ClassificationTask()
    )
    listed = [file for file in sorted(folder.rglob("*")) if file.suffix in (".mat", ".txt") and "val." not in file.name]
    for file in listed:
        kept = file.read_bytes()
        file.unlink()
        with pytest.raises(ConfigurationError, match=r"data\.root: no such file.*" + file.name):
            kind(str(folder))
        file.write_bytes(kept[: len(kept) // 2] if file.suffix == ".mat" else b"\x81")
        with pytest.raises(ConfigurationError, match=f"{file.name}: "):
            samples_of(kind(str(folder), on_bad_record="skip"), tmp_path, ClassificationTask())
        file.write_bytes(kept)


def test_there_are_102_flowers() -> None:
    names = FLOWERS.replace("\n", " ").split(", ")
    assert len({*names}) == len(names) == 102
    known = {1: "pink primrose", 21: "fire lily", 45: "bolero deep blue", 79: "toad lily", 102: "blackberry lily"}
    assert {number: names[number - 1] for number in known} == known


@pytest.mark.slow
def test_bad_flowers_are_named(tmp_path: Path) -> None:
    folder = formats.write_flowers(tmp_path / "x")
    train = np.array([[5, 99, 0, np.nan, np.inf, 6.5, "six", 7, 7, 8]], object)
    savemat(folder / "setid.mat", {"trnid": train, "tstid": [[1, 2]]})
    savemat(folder / "imagelabels.mat", {"labels": [[1, 2, 1, 2, 1, 2, 1, 103, 1, 2, 1, 2]]})
    listed = said_of(lambda **more: FlowersData(str(folder), **more), tmp_path, ClassificationTask()).splitlines()
    number = "expected an image number from 1 to 12"
    assert [line.removeprefix(f"{folder / 'setid.mat'}: ") for line in listed] == [
        f"trnid[1] (id 99): {number}",
        f"trnid[2] (id 0): {number}",
        *(f"trnid[{i}] (id -1): {number}" for i in (3, 4, 5, 6)),
        f"trnid[8] (id 7): image_00007.jpg appears twice; first in {folder / 'setid.mat'}: trnid[7] (id 7)",
        "trnid[9] (id 8): imagelabels.mat: labels[7]: expected 1 to 102",
    ]


@pytest.mark.slow
def test_a_matlab_file_that_crashes_scipy_is_refused(tmp_path: Path) -> None:
    folder = formats.write_flowers(tmp_path / "x")
    savemat(folder / "imagelabels.mat", {"labels": np.ones((1, 12), np.uint8)})
    content = bytearray((folder / "imagelabels.mat").read_bytes())
    content[content.index(b"labels") + 8] = 255  # an unknown number type
    (folder / "imagelabels.mat").write_bytes(content)
    said = refused(lambda **more: FlowersData(str(folder), **more), tmp_path)
    assert said.startswith(f"{folder / 'imagelabels.mat'}: not a readable MATLAB file")


@pytest.mark.slow
def test_matlab_may_store_numbers_as_floats(tmp_path: Path) -> None:
    folder = formats.write_flowers(tmp_path / "x")
    savemat(folder / "setid.mat", {"trnid": [[5.0, 6.0]], "tstid": [[1.0]]})  # a single element is not stored as a list
    train, val = samples_of(FlowersData(str(folder)), tmp_path, ClassificationTask())
    assert (len(train), len(val)) == (2, 1)
    savemat(folder / "setid.mat", {"tstid": [[1.0]]})
    assert "no variable 'trnid'" in refused(lambda **more: FlowersData(str(folder), **more), tmp_path)


def test_lists_skip_comments_and_accept_any_line_ends(tmp_path: Path) -> None:
    folder = formats.write_pets(tmp_path / "x")
    file = folder / "annotations" / "trainval.txt"
    file.write_bytes(b"\xef\xbb\xbf# caf\xc3\xa9\r\n\r\n" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert len(samples_of(PetsData(str(folder)), tmp_path, ClassificationTask())[0]) == 4


@pytest.mark.parametrize(
    ("kind", "write", "file", "line", "said"),
    [
        (PetsData, formats.write_pets, "annotations/test.txt", "Abyssinian", "line 6: expected a line like"),
        (PetsData, formats.write_pets, "annotations/test.txt", "_100 1 1 1", "line 6: expected a line like"),
        (PetsData, formats.write_pets, "annotations/test.txt", "a\0_100 1 1 1", "line 6: expected a line like"),
        (
            PetsData,
            formats.write_pets,
            "annotations/test.txt",
            "Abyssinian_104 1 1 1",
            "Abyssinian_104.jpg appears twice",
        ),
        (PetsData, formats.write_pets, "annotations/test.txt", "Bengal_1 1 1 1", "Bengal_1.jpg: no such image"),
        (
            AircraftData,
            formats.write_aircraft,
            "data/images_variant_test.txt",
            "x 707-320",
            "line 5: expected an image number",
        ),
        (
            AircraftData,
            formats.write_aircraft,
            "data/images_variant_test.txt",
            "1025794",
            "line 5: expected an image number",
        ),
        (
            AircraftData,
            formats.write_aircraft,
            "data/images_variant_test.txt",
            "\N{SUPERSCRIPT TWO} a",
            "line 5: expected",
        ),
    ],
)
def test_a_bad_line_is_named(kind: Any, write: Any, file: str, line: str, said: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "x")
    with (folder / file).open("a", encoding="utf-8") as opened:
        opened.write(line + "\n")
    listed = said_of(lambda **more: kind(str(folder), **more), tmp_path, ClassificationTask())
    assert listed.startswith(f"{folder / file}: line ")
    assert said in listed


def test_the_root_of_aircraft_may_be_the_inner_folder(tmp_path: Path) -> None:
    folder = formats.write_aircraft(tmp_path / "x")
    assert len(samples_of(AircraftData(str(folder / "data")), tmp_path, ClassificationTask())[0]) == 4


@pytest.mark.slow
def test_the_labels_of_held_out_cars_may_lie_in_the_devkit(tmp_path: Path) -> None:
    folder = formats.write_cars(tmp_path / "x")
    shutil.move(folder / "cars_test_annos_withlabels.mat", folder / "devkit")
    assert len(samples_of(CarsData(str(folder)), tmp_path, ClassificationTask())[1]) == 4


@pytest.mark.slow
def test_bad_cars_are_named(tmp_path: Path) -> None:
    folder = formats.write_cars(tmp_path / "x")
    rows = [("00001.jpg", 1), ("00002.jpg", 3), ("00003.jpg", "x"), ("00004.jpg", np.nan), (7, 1), ("00001.jpg", 1)]
    file = folder / "devkit" / "cars_train_annos.mat"
    savemat(file, {"annotations": np.array([rows], [("fname", object), ("class", object)])})
    listed = said_of(lambda **more: CarsData(str(folder), **more), tmp_path, ClassificationTask()).splitlines()
    assert [line.removeprefix(f"{file}: annotations") for line in listed] == [
        "[1] ('00002.jpg'): expected a class from 1 to 2 with a name, got 3",
        "[2] ('00003.jpg'): expected a class from 1 to 2 with a name, got 'x'",
        "[3] ('00004.jpg'): expected a class from 1 to 2 with a name, got nan",
        "[4] (7): expected fname to be a file name",
        f"[5] ('00001.jpg'): 00001.jpg appears twice; first in {file}: annotations[0] ('00001.jpg')",
    ]
    savemat(file, {"annotations": [[1, 2]]})
    assert "expected the fields fname and class" in refused(lambda **more: CarsData(str(folder), **more), tmp_path)
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": {"a": 1}})
    assert "class_names: expected a list, got a dict" in refused(lambda **more: CarsData(str(folder), **more), tmp_path)
