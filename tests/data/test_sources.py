"""Every format that is read: what comes out, what is said of bad entries, and that nothing hostile gets further."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from tests.helpers import formats
from vrft.data import (
    AircraftData,
    CarsData,
    CocoData,
    FlowersData,
    HubData,
    JsonlData,
    PetsData,
    ReasonSegData,
    RecordData,
    ReferenceData,
    YoloData,
)
from vrft.data.benchmarks import FLOWERS
from vrft.errors import ConfigurationError
from vrft.tasks import ClassificationTask, CountingTask, DetectionTask, GroundingTask, MultipleChoiceTask, Task
from vrft.types import Detection, Sample

Samples = list[Sample]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def samples_of(
    data: RecordData, tmp_path: Path, task: Task | None = None, stage: str = "fit"
) -> tuple[Samples, Samples]:
    """What a data module trains on and holds out, without a trainer."""
    module = SimpleNamespace(task=task or DetectionTask())
    data.trainer = SimpleNamespace(default_root_dir=str(tmp_path / "run"), lightning_module=module)  # type: ignore[assignment]
    data.setup(stage)
    train = [data.train_set()[i] for i in range(len(data.train_set()))] if stage == "fit" else []
    return train, [data.val_set()[i] for i in range(len(data.val_set()))]


def said_of(make: Callable[..., RecordData], tmp_path: Path, task: Task | None = None, stage: str = "fit") -> str:
    """The message that stops a run; with "skip", the same lines are listed and the rest is read."""
    with pytest.raises(ConfigurationError) as caught:
        samples_of(make(), tmp_path, task, stage)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train, val = samples_of(make(on_bad_record="skip"), tmp_path, task, stage)
    assert val
    assert train or stage != "fit"
    listed = (tmp_path / "run" / "bad_records.txt").read_text()
    assert listed.splitlines() == str(caught.value).splitlines()[1:]
    return listed


def refused(make: Callable[..., RecordData], tmp_path: Path, task: Task | None = None) -> str:
    """The message that stops a run, also where bad records are skipped."""
    with pytest.raises(ConfigurationError) as caught:
        samples_of(make(on_bad_record="skip"), tmp_path, task)
    return str(caught.value)


def drawn(part: str, count: int = 4, objects: tuple[int, int] = (1, 3)) -> list[list[Detection]]:
    return [boxes for _, boxes in formats.scenes(part, count, objects)]


def assert_same_boxes(found: Any, true: list[Detection], tolerance: float = 1e-4) -> None:
    found, expected = sorted(box.box for box in found), sorted(box.box for box in true)
    assert np.allclose(found, expected, atol=tolerance), (found, expected)


BENCHMARKS = [
    pytest.param(FlowersData, formats.write_flowers, ("pink primrose", "hard-leaved pocket orchid"), id="flowers"),
    pytest.param(PetsData, formats.write_pets, ("Abyssinian", "american bulldog"), id="pets"),
    pytest.param(AircraftData, formats.write_aircraft, formats.VARIANTS, id="aircraft"),
    pytest.param(CarsData, formats.write_cars, formats.MODELS, id="cars"),
]


@pytest.mark.parametrize(("kind", "write", "names"), BENCHMARKS)
def test_a_benchmark_has_its_classes_and_its_split(
    kind: Any, write: Any, names: tuple[str, ...], tmp_path: Path
) -> None:
    folder = write(tmp_path / "x", 5)
    train, val = samples_of(kind(str(folder)), tmp_path, ClassificationTask())
    for part, samples in (("train", train), ("val", val)):
        assert [sample.target for sample in samples] == [names[i % 2] for i in range(5)]
        for sample, (picture, _) in zip(samples, formats.colours(part, 5), strict=True):
            assert np.abs(np.asarray(sample.image, float) - np.asarray(picture)).mean() < 8  # JPEG
    again, _ = samples_of(kind(str(folder)), tmp_path, ClassificationTask())
    assert [sample.image_id for sample in again] == [sample.image_id for sample in train] == list(range(5))
    shots, _ = samples_of(kind(str(folder), shots=1), tmp_path, ClassificationTask())
    assert Counter(sample.target for sample in shots) == Counter(names)
    assert len(samples_of(kind(str(folder), val_fraction=0.2), tmp_path, ClassificationTask())[0]) == 4


@pytest.mark.parametrize(
    ("kind", "write"), [(FlowersData, formats.write_flowers), (AircraftData, formats.write_aircraft)]
)
def test_the_validation_images_may_be_trained_on(kind: Any, write: Any, tmp_path: Path) -> None:
    folder = write(tmp_path / "x")
    train, val = samples_of(kind(str(folder), with_valid=True), tmp_path, ClassificationTask())
    assert (len(train), len(val)) == (8, 4)
    assert len({np.asarray(sample.image).tobytes() for sample in train + val}) == 12


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


def test_bad_flowers_are_named(tmp_path: Path) -> None:
    folder = formats.write_flowers(tmp_path / "x")
    train = np.array([[5, 99, 0, np.nan, np.inf, 6.5, "six", 7, 7, 8]], object)
    savemat(folder / "setid.mat", {"trnid": train, "tstid": [[1, 2]]})
    savemat(folder / "imagelabels.mat", {"labels": [[1, 2, 1, 2, 1, 2, 1, 103, 1, 2, 1, 2]]})
    listed = said_of(lambda **more: FlowersData(str(folder), **more), tmp_path, ClassificationTask()).splitlines()
    number = "expected the number of an image, 1 to 12"
    assert [line.removeprefix(f"{folder / 'setid.mat'}: ") for line in listed] == [
        f"trnid[1] (id 99): {number}",
        f"trnid[2] (id 0): {number}",
        *(f"trnid[{i}] (id -1): {number}" for i in (3, 4, 5, 6)),
        f"trnid[8] (id 7): image_00007.jpg is there twice; first in {folder / 'setid.mat'}: trnid[7] (id 7)",
        "trnid[9] (id 8): imagelabels.mat: labels[7]: expected 1 to 102",
    ]


def test_a_matlab_file_that_crashes_scipy_is_refused(tmp_path: Path) -> None:
    folder = formats.write_flowers(tmp_path / "x")
    savemat(folder / "imagelabels.mat", {"labels": np.ones((1, 12), np.uint8)})
    content = bytearray((folder / "imagelabels.mat").read_bytes())
    content[content.index(b"labels") + 8] = 255  # a type of numbers that there is not
    (folder / "imagelabels.mat").write_bytes(content)
    said = refused(lambda **more: FlowersData(str(folder), **more), tmp_path)
    assert said.startswith(f"{folder / 'imagelabels.mat'}: not a MATLAB file that can be read")


def test_matlab_may_store_numbers_as_floats(tmp_path: Path) -> None:
    folder = formats.write_flowers(tmp_path / "x")
    savemat(folder / "setid.mat", {"trnid": [[5.0, 6.0]], "tstid": [[1.0]]})  # one element is no list
    train, val = samples_of(FlowersData(str(folder)), tmp_path, ClassificationTask())
    assert (len(train), len(val)) == (2, 1)
    savemat(folder / "setid.mat", {"tstid": [[1.0]]})
    assert "no variable 'trnid'" in refused(lambda **more: FlowersData(str(folder), **more), tmp_path)


def test_lists_skip_comments_and_take_any_line_ends(tmp_path: Path) -> None:
    folder = formats.write_pets(tmp_path / "x")
    file = folder / "annotations" / "trainval.txt"
    file.write_bytes(b"\xef\xbb\xbf# caf\xc3\xa9\r\n\r\n" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert len(samples_of(PetsData(str(folder)), tmp_path, ClassificationTask())[0]) == 4


@pytest.mark.parametrize(
    ("kind", "write", "file", "line", "said"),
    [
        (PetsData, formats.write_pets, "annotations/test.txt", "Abyssinian", "line 6: expected a name like"),
        (PetsData, formats.write_pets, "annotations/test.txt", "_100 1 1 1", "line 6: expected a name like"),
        (PetsData, formats.write_pets, "annotations/test.txt", "a\0_100 1 1 1", "line 6: expected a name like"),
        (
            PetsData,
            formats.write_pets,
            "annotations/test.txt",
            "Abyssinian_104 1 1 1",
            "Abyssinian_104.jpg is there twice",
        ),
        (PetsData, formats.write_pets, "annotations/test.txt", "Bengal_1 1 1 1", "Bengal_1.jpg: no such image"),
        (
            AircraftData,
            formats.write_aircraft,
            "data/images_variant_test.txt",
            "x 707-320",
            "line 5: expected the number",
        ),
        (
            AircraftData,
            formats.write_aircraft,
            "data/images_variant_test.txt",
            "1025794",
            "line 5: expected the number",
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


def test_aircraft_may_be_named_by_the_inner_folder(tmp_path: Path) -> None:
    folder = formats.write_aircraft(tmp_path / "x")
    assert len(samples_of(AircraftData(str(folder / "data")), tmp_path, ClassificationTask())[0]) == 4


def test_the_labels_of_held_out_cars_may_lie_in_the_devkit(tmp_path: Path) -> None:
    folder = formats.write_cars(tmp_path / "x")
    shutil.move(folder / "cars_test_annos_withlabels.mat", folder / "devkit")
    assert len(samples_of(CarsData(str(folder)), tmp_path, ClassificationTask())[1]) == 4


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
        f"[5] ('00001.jpg'): 00001.jpg is there twice; first in {file}: annotations[0] ('00001.jpg')",
    ]
    savemat(file, {"annotations": [[1, 2]]})
    assert "expected the fields fname and class" in refused(lambda **more: CarsData(str(folder), **more), tmp_path)
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": {"a": 1}})
    assert "class_names: expected a list, got a dict" in refused(lambda **more: CarsData(str(folder), **more), tmp_path)


def reason_seg(folder: Path, **changes: Any) -> Path:
    """ReasonSeg with a training image that has these changes."""
    formats.write_reason_seg(folder)
    content = {"text": "what?", "is_sentence": True, "shapes": [shape([[1, 1], [5, 1], [5, 9]])]} | changes
    shutil.copy(folder / "train" / "0.jpg", folder / "train" / "x.jpg")
    (folder / "train" / "x.json").write_text(json.dumps(content))
    return folder


def shape(points: Any, label: Any = "target") -> dict[str, Any]:
    return {"label": label, "points": points}


def flat(box: Detection) -> list[float]:
    return [value for point in formats.corners(box.box) for value in point]


def test_an_instruction_asks_for_the_hull_of_its_targets(tmp_path: Path) -> None:
    folder = formats.write_reason_seg(tmp_path / "x", val_split="test")
    train, val = samples_of(ReasonSegData(str(folder), val_split="test"), tmp_path, GroundingTask())
    assert (len(train), len(val)) == (8, 8)
    for part, samples in (("train", train), ("val", val)):
        for i, sample in enumerate(samples):
            boxes = drawn(part)[i // 2]
            assert sample.image_id == i // 2
            assert_same_boxes(sample.target, boxes[:1])
            assert sample.target[0].label == ""
            assert sample.metadata["polygons"] == [flat(boxes[0])]
            assert sample.metadata["ignore"] == [flat(box) for box in boxes[1:]]
    assert {sample.query for sample in train[:2]} == {"What is red?", "the object which has the colour red"}


def test_all_targets_count_and_flags_do_not(tmp_path: Path) -> None:
    shapes = [
        shape([[1, 1], [5, 1], [5, 9]], "TARGET"),
        shape([[20, 30], [25.5, 30], [22, 40]]),
        shape([[0, 0], [50, 0], [50, 50]], "Ignore-2"),
        shape("none", "flag"),
        shape([[0, 0]], "targets"),
    ]
    folder = reason_seg(tmp_path / "x", text=["one", "two"], shapes=shapes)
    train, _ = samples_of(ReasonSegData(str(folder)), tmp_path, GroundingTask())
    assert [(sample.query, sample.target[0].box) for sample in train[-2:]] == [
        ("one", (1, 1, 25.5, 40)),
        ("two", (1, 1, 25.5, 40)),
    ]
    assert train[-1].metadata["ignore"] == [[0, 0, 50, 0, 50, 50]]


def test_an_older_encoding_and_a_target_over_the_edge_are_read(tmp_path: Path) -> None:
    folder = reason_seg(tmp_path / "x", shapes=[shape([[-9, 10], [70, 10], [30, 99]])])
    file = folder / "train" / "x.json"
    file.write_bytes(file.read_bytes().replace(b"what?", "caf\xe9\u2019s?".encode("cp1252")))
    train, _ = samples_of(ReasonSegData(str(folder)), tmp_path, GroundingTask())
    assert (train[-1].query, train[-1].target[0].box) == ("caf\xe9\u2019s?", (0, 10, 56, 56))


TRIANGLE = [[1, 1], [5, 1], [5, 9]]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"text": None}, "text: expected an instruction or a list of them, got None"),
        ({"text": []}, "text: expected an instruction or a list of them, got ["),
        ({"text": ["a", 3]}, "text: expected an instruction"),
        ({"text": " "}, "text: expected an instruction or a list of them, got ' '"),
        ({"text": "\ud800"}, "text: expected an instruction"),  # half a character can't be written to a file
        ({"shapes": {}}, "shapes: expected a list, got a dict"),
        ({"shapes": []}, "shapes: no polygon with the label 'target'"),
        ({"shapes": [shape(TRIANGLE, "ignore")]}, "shapes: no polygon with the label 'target'"),
        ({"shapes": [3]}, "shapes[0]: expected a label and points"),
        ({"shapes": [shape(TRIANGLE, 3)]}, "shapes[0]: expected a label and points"),
        ({"shapes": [shape(TRIANGLE), shape(TRIANGLE[:2])]}, "shapes[1].points: expected at least 3, got 2"),
        ({"shapes": [shape([[1, 1], [5, float("nan")], [5, 9]])]}, "shapes[0].points: expected finite numbers"),
        ({"shapes": [shape([[1, 1], [5, float("inf")], [5, 9]])]}, "shapes[0].points: expected finite numbers"),
        ({"shapes": [shape([[1, 1], [5, 10**400], [5, 9]])]}, "shapes[0].points: expected finite numbers"),
        ({"shapes": [shape([[1, 1], [5, "2"], [5, 9]])]}, "shapes[0].points: expected finite numbers"),
        ({"shapes": [shape([[1, 1], [5, True], [5, 9]])]}, "shapes[0].points: expected finite numbers"),
        ({"shapes": [shape([[1, 1], [5], [5, 9]])]}, "shapes[0].points: expected [[x, y], ...]"),
        ({"shapes": [shape(None)]}, "shapes[0].points: expected [[x, y], ...]"),
        ({"shapes": [shape(TRIANGLE), shape(TRIANGLE[:1], "ignore")]}, "shapes[1].points: expected at least 3"),
        ({"shapes": [shape([[60, 1], [70, 1], [70, 9]])]}, "text[0]: no target in its image of 56 x 56"),
        ({"shapes": [shape([[5, 1], [5, 3], [5, 9]])]}, "text[0]: no target in its image of 56 x 56"),
    ],
)
def test_a_bad_annotation_of_reason_seg_is_named(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    folder = reason_seg(tmp_path / "x", **changes)
    listed = said_of(lambda **more: ReasonSegData(str(folder), **more), tmp_path, GroundingTask())
    assert listed.startswith(f"{folder / 'train' / 'x.json'}: {said}")


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"3", b"{", b"[" * 100_000, b"\x81", b'{"text": 1' + b"0" * 5000 + b"}"]
)
def test_a_json_file_that_is_none_is_named(content: bytes, tmp_path: Path) -> None:
    folder = reason_seg(tmp_path / "x")
    (folder / "train" / "x.json").write_bytes(content)
    listed = said_of(lambda **more: ReasonSegData(str(folder), **more), tmp_path, GroundingTask())
    assert listed.startswith(f"{folder / 'train' / 'x.json'}: ")


def test_missing_parts_of_reason_seg_are_named(tmp_path: Path) -> None:
    folder = formats.write_reason_seg(tmp_path / "x")
    with pytest.raises(ConfigurationError, match=r"data\.root: no such folder"):
        ReasonSegData(str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"data\.val_split: no such folder: .*test"):
        ReasonSegData(str(folder), val_split="test")
    (folder / "train" / "2.jpg").unlink()
    listed = said_of(lambda **more: ReasonSegData(str(folder), **more), tmp_path, GroundingTask())
    assert f"{folder / 'train' / '2.jpg'}: no such image" in listed
    shutil.rmtree(folder / "val")
    (folder / "val").mkdir()
    assert "no JSON files" in refused(lambda **more: ReasonSegData(str(folder), **more), tmp_path)


def references(folder: Path, form: str = "pickle", **settings: Any) -> ReferenceData:
    name = "refs(unc).p" if form == "pickle" else "refs.json"
    return ReferenceData(str(folder / name), str(folder / "instances.json"), str(folder / "images"), **settings)


@pytest.mark.parametrize("form", ["pickle", "json"])
def test_a_sentence_asks_for_its_object(form: str, tmp_path: Path) -> None:
    folder = formats.write_references(tmp_path / "x", form=form)
    train, val = samples_of(references(folder, form), tmp_path, GroundingTask())
    for part, samples in (("train", train), ("val", val)):
        boxes = [box for scene in drawn(part) for box in scene]
        assert len(samples) == 2 * len(boxes)
        for i, sample in enumerate(samples):
            assert_same_boxes(sample.target, [boxes[i // 2]])
            assert sample.query == (f"what is {boxes[i // 2].label}" if i % 2 else f"{boxes[i // 2].label} thing")
    assert not {sample.image_id for sample in train} & {sample.image_id for sample in val}
    first, _ = samples_of(references(folder, form, expressions="first"), tmp_path, GroundingTask())
    assert [sample.query for sample in first] == [sample.query for sample in train[::2]]
    swapped, _ = samples_of(references(folder, form, train_split="val", val_split="train"), tmp_path, GroundingTask())
    assert [sample.query for sample in swapped] == [sample.query for sample in val]


def test_an_unknown_split_is_named(tmp_path: Path) -> None:
    folder = formats.write_references(tmp_path / "x")
    said = refused(lambda **more: references(folder, val_split="testA", **more), tmp_path)
    assert said.startswith("data.val_split: no split 'testA' in ")
    assert said.endswith("it has train, val")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ref_id": 1}, "[0] (ref_id 1): the ref_id is there 2 times"),
        ({"ref_id": "0"}, "[0] (ref_id '0'): expected ref_id to be an integer, got '0'"),
        ({"ann_id": 99}, "[0] (ref_id 0): 0 annotations have id 99"),
        ({"ann_id": None}, "[0] (ref_id 0): expected ann_id to be an integer, got None"),
        ({"ann_id": [1]}, "[0] (ref_id 0): expected ann_id to be an integer, got ["),
        ({"ann_id": float("nan")}, "expected ann_id to be an integer, got nan"),
        ({"image_id": 10**30}, "0 images have id a very large number"),
        ({"image_id": 2}, "annotation 100 is of image 1, not 2"),
        ({"sentences": []}, "expected a list of sentences, got ["),
        ({"sentences": "text"}, "expected a list of sentences, got 'text'"),
        ({"sentences": [{"sent": ""}]}, "sentences[0]: expected a text as sent or raw"),
        ({"sentences": [{"sent": "a"}, 3]}, "sentences[1]: expected a text as sent or raw"),
        ({"split": None}, "[0]: expected a reference with a split"),
        ({"split": {}}, "[0]: expected a reference with a split"),
    ],
)
@pytest.mark.parametrize("form", ["pickle", "json"])
def test_a_bad_reference_is_named(form: str, changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    folder = formats.write_references(tmp_path / "x", form="json")
    content = json.loads((folder / "refs.json").read_text())
    content[0] |= changes
    (folder / "refs.json").write_text(json.dumps(content))
    (folder / "refs(unc).p").write_bytes(pickle.dumps(content, protocol=2))
    listed = said_of(lambda **more: references(folder, form, **more), tmp_path, GroundingTask())
    assert said in listed
    assert listed.startswith(str(folder / ("refs(unc).p" if form == "pickle" else "refs.json")))


@pytest.mark.parametrize(
    ("table", "changes", "said"),
    [
        ("annotations", {"bbox": [0, 0, 0, 5]}, "has no area"),
        ("annotations", {"bbox": [0, 0, "5", 5]}, "expected bbox [x, y, width, height] in finite numbers"),
        ("annotations", {"bbox": [0, 0, 10**400, 5]}, "expected bbox [x, y, width, height] in finite numbers"),
        ("annotations", {"bbox": [0, 0, 5]}, "expected bbox [x, y, width, height] in finite numbers"),
        ("annotations", {"bbox": [50, 50, 20, 20]}, "stands out of its image of 56 x 56"),
        ("annotations", {"id": 101}, "0 annotations have id 100"),
        ("images", {"file_name": "a\0b"}, "image 1: expected a file_name, got 'a\\x00b'"),
        ("images", {"file_name": None}, "image 1: expected a file_name, got None"),
        ("images", {"width": 10**400}, "image 1: expected width and height, got a very large number and 56"),
        ("images", {"id": 2}, "0 images have id 1"),
    ],
)
def test_a_reference_to_a_bad_object_is_named(table: str, changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    folder = formats.write_references(tmp_path / "x")
    content = json.loads((folder / "instances.json").read_text())
    content[table][0] |= changes
    (folder / "instances.json").write_text(json.dumps(content))
    listed = said_of(lambda **more: references(folder, **more), tmp_path, GroundingTask())
    assert listed.startswith(f"{folder / 'refs(unc).p'}: [0] (ref_id 0): ")
    assert said in listed


class Attack:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def attacks(marker: Path) -> dict[str, bytes]:
    path = str(marker).encode()
    return {
        "reduce": pickle.dumps([Attack(marker)]),
        "reduce-0": pickle.dumps([Attack(marker)], protocol=0),
        "class": b"cos\nmkdir\n(V" + path + b"\ntR.",
        "instance": b"(V" + path + b"\nios\nmkdir\n.",
        "object": b"(cos\nmkdir\nV" + path + b"\no.",
        "stack-global": b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93" + b"(V" + path + b"\ntR.",
        "extension": b"\x80\x02\x82\x01.",
        "persistent": b"Vx\nQ.",
        "builtins": b"cbuiltins\neval\n(V1\ntR.",
        "cut": pickle.dumps([{"split": "train"}])[:-9],
        "empty": b"",
        "noise": bytes(range(128, 256)) * 9,
        "length": b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.",
        "memory": b"\x80\x02]r\xff\xff\xff\x7f.",  # the list's place; C's unpickler allocates all before it
        "zeros": b"\x80\x05\x96" + b"\xff" * 5 + b"\0\0\0.",  # a byte array of a terabyte
        "hash": b"\x80\x02]K\x01" + b"\x862" * 60 + b"}q\x00.",  # nested pairs, exponential as a key
        "no-list": pickle.dumps("text"),
    }


@pytest.mark.parametrize("name", attacks(Path("x")))
def test_a_pickle_runs_nothing(name: str, tmp_path: Path) -> None:
    folder = formats.write_references(tmp_path / "x")
    marker = tmp_path / "ran"
    (folder / "refs(unc).p").write_bytes(attacks(marker)[name])
    assert str(folder / "refs(unc).p") in refused(lambda **more: references(folder, **more), tmp_path)
    assert not marker.exists()


def test_the_attacks_are_attacks(tmp_path: Path) -> None:
    for name in ("reduce", "reduce-0", "class", "instance", "object", "stack-global"):
        pickle.loads(attacks(tmp_path / name)[name])
        assert (tmp_path / name).exists(), name


def test_a_large_or_self_containing_pickle_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = formats.write_references(tmp_path / "x")
    laughs: list[Any] = []
    for _ in range(60):
        laughs = [laughs] * 10  # small in a pickle, without end when printed
    content: list[Any] = [{"ref_id": 0, "split": "train", "ann_id": laughs}]
    content[0]["sentences"] = content
    more = pickle.loads((folder / "refs(unc).p").read_bytes())
    (folder / "refs(unc).p").write_bytes(pickle.dumps(content + more[1:], protocol=2))
    listed = said_of(lambda **more: references(folder, **more), tmp_path, GroundingTask())
    assert "[0] (ref_id 0): expected ann_id to be an integer, got a list" in listed
    monkeypatch.setattr("vrft.data.refcoco.MAX_BYTES", 100)
    assert "larger than 100 bytes" in refused(lambda **more: references(folder, **more), tmp_path)


def test_missing_files_of_references_are_named(tmp_path: Path) -> None:
    folder = formats.write_references(tmp_path / "x")
    with pytest.raises(ConfigurationError, match=r"data\.references: no such file"):
        references(folder, "json")
    with pytest.raises(ConfigurationError, match=r"data\.instances: no such file"):
        ReferenceData(str(folder / "refs(unc).p"), str(folder / "x.json"), str(folder))
    with pytest.raises(ConfigurationError, match=r"data\.images: no such folder"):
        ReferenceData(str(folder / "refs(unc).p"), str(folder / "instances.json"), str(folder / "none"))
    (folder / "instances.json").write_text("{}")
    assert "not a COCO or LVIS instances file" in refused(lambda **more: references(folder, **more), tmp_path)


def test_yolo_labels_are_boxes_and_outlines(tmp_path: Path) -> None:
    config = formats.write_yolo(tmp_path / "x")
    data = YoloData(str(config))
    train, val = samples_of(data, tmp_path)
    for part, samples in (("train", train), ("val", val)):
        expected = Counter((i, box.label) for i, boxes in enumerate(drawn(part)) for box in boxes)
        assert {(sample.image_id, sample.query): len(sample.target) for sample in samples} == expected
        for sample in samples:
            true = [box for box in drawn(part)[sample.image_id] if box.label == sample.query]
            assert_same_boxes(sample.target, true)
    assert list(data.ordered_categories()) == list(formats.COLOURS)


def test_yolo_categories_and_negatives(tmp_path: Path) -> None:
    config = formats.write_yolo(tmp_path / "x", 6)
    (tmp_path / "x" / "labels" / "train" / "1.txt").unlink()  # an image without objects
    data = YoloData(str(config), categories=["green", "red"], val_categories=["red"], negatives=1.0)
    train, val = samples_of(data, tmp_path)
    found = [sample for sample in train if sample.target]
    absent = [sample for sample in train if not sample.target]
    assert {sample.query for sample in train} == {"red", "green"}
    assert {sample.query for sample in val} == {"red"}
    assert 0 < len(absent) <= len(found)
    assert 1 not in {sample.image_id for sample in found}
    assert all(sample.target for sample in val)
    assert "data.val_categories: 'blu' is not in" in refused(
        lambda **more: YoloData(str(config), val_categories=["blu"], **more), tmp_path
    )


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("9 .5 .5 .2 .2", "no class has number '9'; there are 8"),
        ("-1 .5 .5 .2 .2", "no class has number '-1'"),
        ("red .5 .5 .2 .2", "no class has number 'red'"),
        ("00000000009 .5 .5 .2 .2", "no class has number '00000000009'"),
        ("0", "expected class, x, y, width and height"),
        ("0 .5 .5 .2", "expected class, x, y, width and height"),
        ("0 .5 .5 .2 .2 .9", "expected class, x, y, width and height"),
        ("0 .5 .5 .2 x", "could not convert string to float"),
        ("0 .5 .5 .2 nan", "expected class, x, y, width and height"),
        ("0 .5 .5 .2 inf", "expected class, x, y, width and height"),
        ("0 .5 .5 .2 1e999", "expected class, x, y, width and height"),
        ("0 .5 .5 0 .2", "has no area"),
        ("0 .5 .5 -.2 .2", "has no area"),
        ("0 .9 .5 .4 .2", "stands out of its image"),
        ("0 30 30 10 10", "stands out of its image"),  # pixels
        ("0 .1 .1 .5 .1 .3 .1", "has no area"),  # an outline without height
    ],
)
def test_a_bad_label_is_named_and_its_image_left_out(line: str, said: str, tmp_path: Path) -> None:
    config = formats.write_yolo(tmp_path / "x")
    file = tmp_path / "x" / "labels" / "train" / "1.txt"
    file.write_text(f"0 .5 .5 .2 .2\n\n{line}\n")
    listed = said_of(lambda **more: YoloData(str(config), **more), tmp_path)
    assert listed.startswith(f"{file}: line 3: ")
    assert said in listed
    train, _ = samples_of(YoloData(str(config), on_bad_record="skip"), tmp_path)
    assert {sample.image_id for sample in train} == {0, 2, 3}


def test_a_repeated_label_counts_once_and_rounding_is_cut_off(tmp_path: Path) -> None:
    config = formats.write_yolo(tmp_path / "x")
    (tmp_path / "x" / "labels" / "train" / "0.txt").write_text("0 .5 .5 1.0004 1\n" * 2)
    train, _ = samples_of(YoloData(str(config)), tmp_path)
    assert [box.box for box in train[0].target] == [(0, 0, 56, 56)]


@pytest.mark.parametrize("content", [b"\x81\x8d 1", b"\xff\xfe0\x00 \x00"])
def test_labels_that_are_no_text_are_named(content: bytes, tmp_path: Path) -> None:
    config = formats.write_yolo(tmp_path / "x")
    file = tmp_path / "x" / "labels" / "train" / "1.txt"
    file.write_bytes(content)
    assert said_of(lambda **more: YoloData(str(config), **more), tmp_path).startswith(f"{file}: ")
    file.unlink()
    file.mkdir()
    assert f"{file}: can't be read" in said_of(lambda **more: YoloData(str(config), **more), tmp_path)
    file.rmdir()
    (tmp_path / "x" / "images" / "train" / "2.png").write_bytes(b"no image")
    assert "2.png: not an image" in said_of(lambda **more: YoloData(str(config), **more), tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names: expected a list"),
        ("[1]", "names: expected a list"),
        ("train: images/train\nnames: red", "names: expected a list"),
        ("train: images/train\nnames: [red, yes]", "names: expected text in quotes for a number, got True for 1"),
        ("train: images/train\nnames: {a: red}", "names: expected text in quotes for a number, got 'red' for 'a'"),
        ("train: images/train\nnames: [[red]]", "names: expected text in quotes for a number, got ['red'] for 0"),
        ("train: 3\nnames: [red]", "train: expected a folder of images, got 3"),
        ("path: [a]\ntrain: images/train\nnames: [red]", "train: expected a folder of images"),
        ("train: images/none\nnames: [red]", "train: no such folder"),
        ('train: "a\\0b"\nnames: [red]', "train: no such folder"),
        ("names: {1: [", "is not YAML that can be read"),
        ("names: !!python/object/apply:os.system [true]", "is not YAML that can be read"),
        ("names: 2020-99-99", "is not YAML that can be read"),
        ("names: !!float ''", "is not YAML that can be read"),
        ("[" * 5000, "is not YAML that can be read"),
        ("a: &a [x]\nb: &b [*a, *a]\nnames: [*b]\ntrain: x", "got a list for 0"),
    ],
)
def test_a_bad_data_yaml_ends_it(text: str, said: str, tmp_path: Path) -> None:
    config = formats.write_yolo(tmp_path / "x")
    config.write_text(text)
    message = refused(lambda **more: YoloData(str(config), **more), tmp_path)
    assert message.startswith(f"data.config: {config}")
    assert said in message


def test_names_of_yolo_may_have_gaps_and_settings_are_checked(tmp_path: Path) -> None:
    config = formats.write_yolo(tmp_path / "x")
    (tmp_path / "x" / "labels" / "val" / "0.txt").write_text("70 .5 .5 .2 .2\n")
    config.write_text(config.read_text() + "  70: kite\n")
    _, val = samples_of(YoloData(str(config)), tmp_path)
    assert val[0].query == "kite"
    with pytest.raises(ConfigurationError, match=r"data\.config: no such file"):
        YoloData(str(tmp_path / "none.yaml"))
    with pytest.raises(ConfigurationError, match=r"data\.negatives: expected at least 0"):
        YoloData(str(config), negatives=-1.0)


def jsonl(folder: Path, **settings: Any) -> JsonlData:
    return JsonlData(str(folder / "train.jsonl"), str(folder / "val.jsonl"), **settings)


def hub(folder: Path, ending: str = ".parquet", **settings: Any) -> HubData:
    return HubData(str(folder / f"train{ending}"), str(folder / f"val{ending}"), **settings)


@pytest.mark.parametrize(
    ("write", "make"),
    [
        pytest.param(formats.write_jsonl, jsonl, id="jsonl"),
        pytest.param(formats.write_hub, hub, id="parquet"),
        pytest.param(
            lambda folder: formats.write_hub(folder, form="disk"), lambda folder: hub(folder, ""), id="save_to_disk"
        ),
    ],
)
def test_solutions_are_read_by_the_task(write: Any, make: Any, tmp_path: Path) -> None:
    train, val = samples_of(make(write(tmp_path / "x")), tmp_path)
    for part, samples in (("train", train), ("val", val)):
        assert [sample.image_id for sample in samples] == list(range(4))
        for sample, boxes in zip(samples, drawn(part), strict=True):
            assert sample.query == boxes[0].label
            assert_same_boxes(sample.target, [box for box in boxes if box.label == sample.query], tolerance=0.03)
            assert sample.size == (56, 56)


def test_a_folder_of_parquet_files_and_a_split_are_read(tmp_path: Path) -> None:
    import datasets

    folder = formats.write_hub(tmp_path / "x")
    train, val = samples_of(HubData(str(folder), val_fraction=0.25), tmp_path)
    assert (len(train), len(val)) == (3, 1)  # the file that is named after the other part is none of it
    parts = {part: datasets.Dataset.from_parquet(str(folder / f"{part}.parquet")) for part in formats.PARTS}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "both")
    train, val = samples_of(HubData(str(tmp_path / "both"), split="val", val_fraction=0.5), tmp_path)
    assert {sample.query for sample in train + val} == {boxes[0].label for boxes in drawn("val")}
    assert "can't be read as a data set" in refused(
        lambda **more: HubData(str(tmp_path / "both"), split="test", val_fraction=0.5, **more), tmp_path
    )


@pytest.mark.parametrize(("coordinates", "size"), [("pixels", (56, 56)), ("thousandths", (1000, 1000))])
def test_solutions_may_be_in_other_coordinates(coordinates: Any, size: tuple[int, int], tmp_path: Path) -> None:
    folder = formats.write_jsonl(tmp_path / "x", size=size)
    train, _ = samples_of(jsonl(folder, coordinates=coordinates), tmp_path)
    for sample, boxes in zip(train, drawn("train"), strict=True):
        assert_same_boxes(sample.target, [box for box in boxes if box.label == sample.query], tolerance=0.51)


LINE = {"image": "images/train0.png", "problem": "red"}


@pytest.mark.parametrize(
    ("task", "solution", "coordinates", "target"),
    [
        (DetectionTask(), "[{'Position': [0, 0, 500, 250]}]", "thousandths", (Detection((0, 0, 28, 14), "red"),)),
        (
            DetectionTask(),
            "<answer>[{'Position': [0, 0, 0.5, 0.25]}]</answer>",
            "unit",
            (Detection((0, 0, 28, 14), "red"),),
        ),
        (DetectionTask(), '[{"bbox_2d": [0, 0, 28, 14], "label": "x"}]', "pixels", (Detection((0, 0, 28, 14), "red"),)),
        (DetectionTask(), "No Objects", "thousandths", ()),
        (ClassificationTask(), "<answer>707-320</answer>", "thousandths", "707-320"),
        (ClassificationTask(), "Boeing 717", "thousandths", "Boeing 717"),
        (CountingTask(), "<think>1, 2</think><answer> 07 </answer>", "thousandths", "7"),
        (MultipleChoiceTask(), "(b)", "thousandths", "B"),
    ],
)
def test_a_solution_with_or_without_tags(
    task: Task, solution: str, coordinates: Any, target: Any, tmp_path: Path
) -> None:
    folder = formats.write_jsonl(tmp_path / "x")
    for part in formats.PARTS:
        (folder / f"{part}.jsonl").write_text(json.dumps(LINE | {"solution": solution}))
    train, _ = samples_of(jsonl(folder, coordinates=coordinates), tmp_path, task)
    assert [sample.target for sample in train] == [target]


def test_a_grounding_solution_is_one_box(tmp_path: Path) -> None:
    folder = formats.write_jsonl(tmp_path / "x")
    for part in formats.PARTS:
        (folder / f"{part}.jsonl").write_text(json.dumps(LINE | {"solution": "<answer>(0,0),(500,250)</answer>"}))
    train, _ = samples_of(jsonl(folder), tmp_path, GroundingTask())
    assert_same_boxes(train[0].target, [Detection((0, 0, 28, 14), "")])


def test_shots_are_counted_by_answer_or_by_category(tmp_path: Path) -> None:
    folder = formats.write_jsonl(tmp_path / "x", 6)
    train, _ = samples_of(jsonl(folder, shots=1), tmp_path)
    assert sorted(sample.query for sample in train) == ["green", "red"]
    lines = [{"image": f"images/train{i}.png", "problem": "what?", "solution": "abc"[i % 3]} for i in range(6)]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    train, _ = samples_of(jsonl(folder, shots=1), tmp_path, ClassificationTask())
    assert sorted(str(sample.target) for sample in train) == ["a", "b", "c"]


GOOD = LINE | {"solution": "<answer>No Objects</answer>"}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"{", "not JSON"),
        (b"\x81", "not JSON"),
        (b"[" * 100_000, "not JSON: nested too deeply"),
        (b"3", "expected an object, got 3"),
        (b'"text"', "expected an object, got 'text'"),
        (GOOD | {"problem": 3}, "problem: expected text, got 3"),
        (GOOD | {"problem": " "}, "problem: expected text, got ' '"),
        (GOOD | {"solution": None}, "solution: expected text, got None"),
        (GOOD | {"solution": float("nan")}, "solution: expected text, got nan"),
        (GOOD | {"solution": "cat"}, "solution can't be read by DetectionTask: 'cat'"),
        (GOOD | {"solution": "__import__('os').abort()"}, "solution can't be read by DetectionTask"),
        (GOOD | {"solution": "[{'Position': [0, 0, 1001, 5]}]"}, "solution can't be read by DetectionTask"),
        (GOOD | {"solution": "[{'Position': [9, 0, 1, 5]}]"}, "solution can't be read by DetectionTask"),
        (GOOD | {"solution": "[{'Position': [0, 0, NaN, 5]}]"}, "solution can't be read by DetectionTask"),
        (GOOD | {"image": None}, "image: expected one, got None"),
        (GOOD | {"image": ["a"]}, "image: expected one, got ["),
        (GOOD | {"image": "a\0b"}, "image: expected one, got 'a\\x00b'"),
        (GOOD | {"image": "\ud800"}, "image: expected one"),
        (GOOD | {"image": "none.png"}, "none.png: no such image"),
        (GOOD | {"image": "train.jsonl"}, "train.jsonl: not an image"),
        (GOOD | {"image": "images"}, "can't be opened"),
        (GOOD | {"image": "x" * 999}, "can't be opened"),
        (GOOD | {"choices": 3}, "choices: expected a list of texts, got 3"),
    ],
)
def test_a_bad_line_of_json_is_named(line: Any, said: str, tmp_path: Path) -> None:
    folder = formats.write_jsonl(tmp_path / "x")
    content = line if isinstance(line, bytes) else json.dumps(line).encode()
    with (folder / "train.jsonl").open("ab") as file:
        file.write(b"\n" + content)
    listed = said_of(lambda **more: jsonl(folder, **more), tmp_path)
    assert listed.startswith(f"{folder / 'train.jsonl'}: line 6: ")
    assert said in listed


def test_other_fields_are_metadata(tmp_path: Path) -> None:
    folder = formats.write_jsonl(tmp_path / "x")
    (folder / "train.jsonl").write_text(json.dumps(GOOD | {"solution": "red", "choices": ["blue", "red"], "source": 3}))
    train, _ = samples_of(
        JsonlData(str(folder / "train.jsonl"), str(folder / "train.jsonl")), tmp_path, MultipleChoiceTask()
    )
    assert train[0].target == "B"
    assert (train[0].metadata["choices"], train[0].metadata["source"]) == (["blue", "red"], 3)


def test_missing_files_of_solutions_are_named(tmp_path: Path) -> None:
    folder = formats.write_jsonl(tmp_path / "x")
    with pytest.raises(ConfigurationError, match=r"data\.train: no such file: .*x\.jsonl; expected JSON lines"):
        JsonlData(str(folder / "x.jsonl"), val_fraction=0.5)
    for kind in (JsonlData, HubData):
        with pytest.raises(ConfigurationError, match=r"data\.val: .*val_fraction"):
            kind(str(folder / "train.jsonl"))


def table(**columns: Any) -> Any:
    import datasets

    return datasets.Dataset.from_dict(columns)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"image": [1], "problem": ["a"], "solution": ["b"]}, "can't be read as a data set"),
        ({"problem": ["a"], "solution": ["b"]}, "no column 'image'; it has problem, solution"),
        ({"picture": [1]}, "no column 'image'; it has picture"),
    ],
)
def test_a_table_without_what_is_needed_ends_it(columns: dict[str, Any], said: str, tmp_path: Path) -> None:
    table(**columns).to_parquet(tmp_path / "train.parquet")
    message = refused(lambda **more: HubData(str(tmp_path / "train.parquet"), val_fraction=0.5, **more), tmp_path)
    assert message.startswith(f"data.train: {tmp_path / 'train.parquet'}")
    assert said in message


def test_bad_rows_of_a_table_are_named(tmp_path: Path) -> None:
    formats.write_hub(tmp_path / "x")
    good = (tmp_path / "good.png", "red", "No Objects")
    Image.new("RGB", (20, 20)).save(good[0])
    picture = {"bytes": good[0].read_bytes(), "path": None}
    rows = [
        (picture, "red", "No Objects"),
        (picture, None, "No Objects"),
        (picture, "red", "maybe"),
        ({"bytes": b"no image", "path": None}, "red", "No Objects"),
        ({"bytes": None, "path": None}, "red", "No Objects"),
        (None, "red", "No Objects"),
        ({"bytes": None, "path": str(tmp_path / "none.png")}, "red", "No Objects"),
        ({"bytes": None, "path": "a\0b"}, "red", "No Objects"),
        ({"bytes": None, "path": str(good[0])}, "red", "No Objects"),
    ]
    file = tmp_path / "train.parquet"
    table(**dict(zip(("image", "problem", "solution"), map(list, zip(*rows, strict=True)), strict=True))).to_parquet(
        file
    )
    make = lambda **more: HubData(str(file), str(tmp_path / "x" / "val.parquet"), **more)  # noqa: E731
    listed = said_of(make, tmp_path).splitlines()
    assert sorted(int(line.removeprefix(f"{file}: row ").partition(":")[0]) for line in listed) == [1, 2, 3, 4, 5, 6, 7]
    train, _ = samples_of(make(on_bad_record="skip"), tmp_path)
    assert [sample.image_id for sample in train] == [0, 8]


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"\0" * 50 + b"PAR1", b"text"])
def test_a_broken_table_ends_it(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(content)
    (tmp_path / "empty").mkdir()
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "state.json").write_bytes(content)
    for name in ("x.parquet", "empty", "disk"):
        message = refused(lambda name=name, **more: HubData(str(tmp_path / name), val_fraction=0.5, **more), tmp_path)
        assert message.startswith(f"data.train: {tmp_path / name} can't be read as a data set")


def test_without_datasets_or_its_data_set_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = lambda **more: HubData("nobody/has-this", val_fraction=0.5, **more)  # noqa: E731
    assert "data.train: nobody/has-this can't be read as a data set" in refused(make, tmp_path)  # tests are offline
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    assert "vrft[hub]" in refused(make, tmp_path)


def test_images_of_a_table_are_read_when_they_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = hub(formats.write_hub(tmp_path / "x"))
    samples_of(data, tmp_path)
    copied = pickle.loads(pickle.dumps(data.train_set()))  # as for a worker process
    assert np.array_equal(np.asarray(copied[1].image), np.asarray(data.train_set()[1].image))
    assert all(not isinstance(record.image, Path) for record in data.train_set().records)
    assert len({str(record.image) for record in data.train_set().records}) == 4


def test_lvis_files_name_images_by_address(tmp_path: Path) -> None:
    folder = formats.write_lvis(tmp_path / "x")
    files = [str(folder / name) for name in ("lvis_train.json", "train2017", "lvis_val.json", "val2017")]
    train, val = samples_of(CocoData(*files, negatives=1.0), tmp_path)
    for part, start, samples in (("train", 1, train), ("val", 1001, val)):
        for sample in samples:
            true = [box for box in drawn(part)[sample.image_id - start] if box.label == sample.query]
            assert len(sample.target) == len(true)
            assert not true or np.allclose([box.box for box in sample.target], [box.box for box in true])
    assert [sample for sample in train if not sample.target]
    assert not [sample for sample in val if not sample.target]
