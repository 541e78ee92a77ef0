"""Solutions in JSON lines and Hub datasets: parsed by the task, or reported."""

from __future__ import annotations

import json
import pickle
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.helpers import formats
from tests.helpers.data import assert_same_boxes, drawn, refused, said_of, samples_of
from vrft.data import (
    HubData,
    JsonlData,
)
from vrft.data.formats.hub import HubImage
from vrft.data.record import image_key
from vrft.errors import ConfigurationError
from vrft.tasks import ClassificationTask, CountingTask, DetectionTask, GroundingTask, MultipleChoiceTask, Task
from vrft.types import Detection


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


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
    with pytest.warns(UserWarning, match=r"split 'validation' of .*isn't used, because data\.val_fraction=0\.25"):
        train, val = samples_of(HubData(str(folder), val_fraction=0.25), tmp_path)
    assert (len(train), len(val)) == (3, 1)  # a file named after the other split does not belong to it
    parts = {part: datasets.Dataset.from_parquet(str(folder / f"{part}.parquet")) for part in formats.PARTS}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "both")
    train, val = samples_of(HubData(str(tmp_path / "both"), split="val", val_fraction=0.5), tmp_path)
    assert {sample.query for sample in train + val} == {boxes[0].label for boxes in drawn("val")}


def three_splits(folder: Path) -> None:
    """Write three splits as a folder of parquet files and by `save_to_disk`; `test` has the first two rows of `val`."""
    import datasets

    parts = {part: datasets.Dataset.from_parquet(str(folder / f"{part}.parquet")) for part in formats.PARTS}
    tables = {"train": parts["train"], "validation": parts["val"], "test": parts["val"].select([0, 1])}
    datasets.DatasetDict(tables).save_to_disk(folder / "disk")
    for name, part in tables.items():
        part.to_parquet(folder / "files" / f"{name}-00000-of-00001.parquet")


@pytest.mark.parametrize("kind", ["files", "disk"])
def test_splits_of_one_data_set_are_named(kind: str, tmp_path: Path) -> None:
    three_splits(formats.write_hub(tmp_path / "x"))
    source = str(tmp_path / "x" / kind)
    data = HubData(source, val_split="validation", test_split="test")
    train, val = samples_of(data, tmp_path)
    _, tested = samples_of(data, tmp_path, stage="test")
    for part, samples in (("train", train), ("val", val)):
        assert [sample.query for sample in samples] == [boxes[0].label for boxes in drawn(part)]
    assert [sample.query for sample in tested] == [sample.query for sample in val[:2]]
    assert data.test_set().records[0].location == f"{source}: test: row 0"
    other = HubData(source, str(tmp_path / "x" / "val.parquet"))  # held-out data of its own: its split `train`
    assert len(samples_of(other, tmp_path)[1]) == 4
    for settings, said in (
        ({"val_split": "dev"}, "data.val: .*'?dev'?.*validation"),
        ({"val": source}, "data.val_split: .*'train' is data.train already"),
        ({"val": f"{source}/../{kind}"}, "data.val_split: .*'train' is data.train already"),
        ({"val_split": "train"}, "data.val_split: .*'train' is data.train already"),
        (
            {"val_split": "validation", "test_split": "validation"},
            "data.test_split: .*'validation' is data.val already",
        ),
        ({"val_split": "validation", "val_fraction": 0.5}, "data.val: .*both are given"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            samples_of(HubData(source, **settings), tmp_path)


def test_a_subset_of_a_data_set_is_named(tmp_path: Path) -> None:
    folder = formats.write_hub(tmp_path / "x")
    configs = "".join(f"- config_name: only-{part}\n  data_files: {part}.parquet\n" for part in formats.PARTS)
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    data = HubData(str(folder), subset="only-val", val_fraction=0.5)
    queries = [sample.query for part in samples_of(data, tmp_path) for sample in part]
    assert sorted(queries) == sorted(boxes[0].label for boxes in drawn("val"))
    assert data.train_set().records[0].location.startswith(f"{folder}: only-val: train: row ")
    for source, subset, said in (
        (folder, None, r"data\.subset is missing\. .*'only-train', 'only-val'"),
        (folder, "other", "'other' not found. Available: .*'only-train', 'only-val'"),
        (folder / "val.parquet", "only-val", r"data\.subset: data\.train: .*val.parquet has no subsets; expected null"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            samples_of(HubData(str(source), subset=subset, val_fraction=0.5), tmp_path)


@pytest.mark.parametrize("form", ["parquet", "disk"])
def test_a_single_table_has_no_other_split(form: str, tmp_path: Path) -> None:
    formats.write_hub(tmp_path / "x", form=form)
    source = str(tmp_path / "x" / ("train" if form == "disk" else "train.parquet"))
    message = refused(lambda **more: HubData(source, split="test", val_fraction=0.5, **more), tmp_path)
    assert message.startswith(f"data.train: {source} can't be read as a dataset: ")
    assert "test" in message
    assert "train" in message.partition("can't be read")[2]


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


@pytest.mark.parametrize("coordinates", ["thousandths", "pixels"])
@pytest.mark.parametrize(
    ("positions", "refused"), [([[0, 0.1, 0.5, 0.9]], True), ([[0, 0, 0.5, 0.5], [0, 0, 2, 1]], False)]
)
def test_fractions_are_no_pixels_or_thousandths(
    coordinates: Any, positions: Any, refused: bool, tmp_path: Path
) -> None:
    folder = formats.write_jsonl(tmp_path / "x")
    solution = str([{"Position": position} for position in positions])
    for part in formats.PARTS:
        (folder / f"{part}.jsonl").write_text(json.dumps(LINE | {"solution": solution}))
    said = "train.jsonl: line 1: no coordinate is above 0.9; expected pixels"
    with pytest.raises(ConfigurationError, match=said) if refused else nullcontext():
        samples_of(jsonl(folder, coordinates=coordinates), tmp_path)


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
        (GOOD | {"image": "train.jsonl"}, "train.jsonl: not a readable image"),
        (GOOD | {"image": "images"}, "images: can't be opened: Is a directory"),
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
        ({"image": [1], "problem": ["a"], "solution": ["b"]}, "can't be read as a dataset"),
        ({"problem": ["a"], "solution": ["b"]}, "no column 'image'; it has problem, solution"),
        ({"picture": [1]}, "no column 'image'; it has picture"),
    ],
)
def test_a_table_without_a_required_column_is_an_error(columns: dict[str, Any], said: str, tmp_path: Path) -> None:
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
        ({"bytes": None, "path": str(tmp_path / "a\0b")}, "red", "No Objects"),
        ({"bytes": None, "path": str(good[0])}, "red", "No Objects"),
    ]
    file = tmp_path / "train.parquet"
    table(**dict(zip(("image", "problem", "solution"), map(list, zip(*rows, strict=True)), strict=True))).to_parquet(
        file
    )
    make = lambda **more: HubData(str(file), str(tmp_path / "x" / "val.parquet"), **more)  # noqa: E731
    listed = said_of(make, tmp_path).splitlines()
    assert sorted(int(line.removeprefix(f"{file}: train: row ").partition(":")[0]) for line in listed) == [
        1,
        2,
        3,
        4,
        5,
        6,
        7,
    ]
    train, _ = samples_of(make(on_bad_record="skip"), tmp_path)
    assert [sample.image_id for sample in train] == [0, 8]


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"\0" * 50 + b"PAR1", b"text"])
def test_a_broken_table_is_an_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(content)
    (tmp_path / "empty").mkdir()
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "state.json").write_bytes(content)
    for name in ("x.parquet", "empty", "disk"):
        message = refused(lambda name=name, **more: HubData(str(tmp_path / name), val_fraction=0.5, **more), tmp_path)
        assert message.startswith(f"data.train: {tmp_path / name} can't be read as a dataset")


def test_a_missing_datasets_package_or_data_set_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = lambda **more: HubData("nobody/has-this", val_fraction=0.5, **more)  # noqa: E731
    assert "data.train: nobody/has-this can't be read as a dataset" in refused(make, tmp_path)  # tests are offline
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    assert "pip install 'datasets>=4'" in refused(make, tmp_path)


def test_images_of_a_table_are_read_on_access(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = hub(formats.write_hub(tmp_path / "x"))
    samples_of(data, tmp_path)
    copied = pickle.loads(pickle.dumps(data.train_set()))  # as for a worker process
    assert np.array_equal(np.asarray(copied[1].image), np.asarray(data.train_set()[1].image))
    assert all(not isinstance(record.image, Path) for record in data.train_set().records)
    assert len({str(record.image) for record in data.train_set().records}) == 4


def test_each_image_of_a_table_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check for shared images needs its key several times."""
    data = hub(formats.write_hub(tmp_path / "x"))
    samples_of(data, tmp_path)
    monkeypatch.delattr(HubImage, "read")
    assert len({image_key(record) for record in data.train_set().records}) == 4
