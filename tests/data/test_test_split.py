"""Three splits: `test` uses images that neither trained nor chose the checkpoint, and says so if there are none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.data.formats.test_yolo_exports import roboflow
from tests.helpers import formats
from tests.helpers.annotation_tools import write
from tests.helpers.coco import coco
from tests.helpers.data import samples_of
from vrft.__main__ import main
from vrft.data import (
    BoxCsvData,
    CocoData,
    CsvData,
    ImageFolderData,
    JsonlData,
    PetsData,
    ReasonSegData,
    RecordData,
    ReferenceData,
    YoloData,
)
from vrft.errors import ConfigurationError


def coco_splits(folder: Path) -> RecordData:
    files = []
    for start, part in enumerate(("train", "val", "test")):
        tables, _ = formats.coco_tables(folder / part, part, 2, 1 + 100 * start)
        (folder / f"{part}.json").write_text(json.dumps(tables))
        files += [str(folder / f"{part}.json"), str(folder / part)]
    return CocoData(*files[:4], test_annotations=files[4], test_images=files[5])


def class_folders(folder: Path) -> RecordData:
    for part in ("train", "valid", "test"):
        for i, (picture, label) in enumerate(formats.colours(part, 2)):
            formats.save(picture, folder / part / formats.CLASSES[label - 1] / f"{part}{i}.png")
    return ImageFolderData(str(folder))


def tables(folder: Path) -> RecordData:
    for part in ("train", "val", "test"):
        name = formats.save(formats.scenes(part, 1)[0][0], folder / f"{part}.png")
        (folder / f"{part}.csv").write_text(f"image,label\n{name},red\n")
    return CsvData(*(str(folder / f"{part}.csv") for part in ("train", "val")), test_csv=str(folder / "test.csv"))


def lines(folder: Path) -> RecordData:
    formats.write_jsonl(folder)
    shutil.copy(folder / "val.jsonl", folder / "test.jsonl")
    (folder / "test.jsonl").write_text((folder / "val.jsonl").read_text().replace("images/val0", "images/train0"))
    return JsonlData(*(str(folder / f"{part}.jsonl") for part in ("train", "val")), test=str(folder / "test.jsonl"))


def reason_seg(folder: Path) -> RecordData:
    shutil.copytree(formats.write_reason_seg(folder) / "train", folder / "test")
    return ReasonSegData(str(folder), test_split="test")


def references(folder: Path) -> RecordData:
    formats.write_references(folder, form="json")
    files = [str(folder / name) for name in ("refs.json", "instances.json", "images")]
    return ReferenceData(*files, val_split="val", test_split="train")


SOURCES: dict[str, Callable[[Path], RecordData]] = {
    "coco": coco_splits,
    "yolo": lambda folder: YoloData(str(roboflow(folder))),
    "classes": class_folders,
    "csv": tables,
    "jsonl": lines,
    "reason_seg": reason_seg,
    "references": references,
    "boxes": lambda folder: BoxCsvData(
        str(write("csv", folder / "train")),
        val_annotations=str(write("csv", folder / "val", "val")),
        test_annotations=str(write("csv", folder / "test", "test")),
    ),
}


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_has_a_test_split(name: str, tmp_path: Path) -> None:
    data = SOURCES[name](tmp_path / "x")
    assert "test" in data.splits()
    _, held_out = samples_of(data, tmp_path)
    _, tested = samples_of(data, tmp_path, stage="test")
    images = [
        {str(record.image) for record in records} for records in (data.val_set().records, data.test_set().records)
    ]
    assert held_out
    assert tested
    assert images[0] != images[1]
    assert len(tested) == len(data.test_set())


def test_with_a_fold_for_choosing_the_held_out_file_is_the_test(tmp_path: Path) -> None:
    data = PetsData(str(formats.write_pets(tmp_path / "x", 8)), val_shots=1)
    samples_of(data, tmp_path)
    samples_of(data, tmp_path, stage="test")
    assert [len(data.val_set()), len(data.test_set())] == [2, 8]
    assert data.evaluated_split() == "val"


def test_without_a_test_split_the_held_out_images_are_used_and_this_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = str(coco(tmp_path))
    data = CocoData(file, str(tmp_path), file, str(tmp_path))
    with caplog.at_level("INFO"):
        samples_of(data, tmp_path, stage="test")
    assert "no test split is given, so the test uses the held-out images" in caplog.text
    assert "data.test_annotations provides one" in caplog.text
    assert data.test_set() is data.val_set()


@pytest.mark.slow
def test_the_command_tests_on_the_test_split(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = roboflow(tmp_path / "x", "{}/images")
    command = ["test", "--config", "quickstart", "--data=YoloData"]
    command += [f"--data.config={config}", f"--run_dir={tmp_path}/run", "--trainer.logger=false"]
    with caplog.at_level("INFO"):
        assert main([*command, "--model.max_completion_length=8", "--trainer.enable_progress_bar=false"]) == 0
    assert "data: 2 images with 5 boxes and 4 categories to test on" in caplog.text
    truth = json.loads((tmp_path / "run" / "evaluation" / "annotations_test.json").read_text())
    assert {Path(image["file_name"]).name for image in truth["images"]} == {"test0.png", "test1.png"}


@pytest.mark.slow
def test_predict_asks_about_the_test_split(tmp_path: Path) -> None:
    config = roboflow(tmp_path / "x", "{}/images")
    command = ["predict", "--config", "quickstart", "--data=YoloData", "--split=test", "--draw"]
    command += [f"--data.config={config}", f"--run_dir={tmp_path}/run", "--model.max_completion_length=2"]
    assert main([*command, "--trainer.enable_progress_bar=false"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    assert {(Path(row["file"]).name, row["image_id"]) for row in rows} == {
        ("test0.png", "test0"),
        ("test1.png", "test1"),
    }
    assert {path.name.partition("-")[2] for path in (tmp_path / "run" / "predictions").iterdir()} == {
        "test0.jpg",
        "test1.jpg",
    }


def test_mistakes_and_shared_images_of_the_test_split_are_found_before_training(tmp_path: Path) -> None:
    config = roboflow(tmp_path / "x", "{}/images")
    config.write_text(config.read_text().replace("test: test/images", "test: valid/images"))
    with pytest.warns(UserWarning, match="test records? with an image of the held-out data"):
        samples_of(YoloData(str(config)), tmp_path)
    config.write_text(config.read_text().replace("test: valid/images", "test: test/images"))
    absent = config.with_name("absent.yaml")
    absent.write_text(config.read_text().replace("test: test/images", "test: test-dev"))
    label = tmp_path / "x" / "test" / "labels" / "test0.txt"
    label.write_text("0 .5 .5 2 2\n")
    with pytest.warns(UserWarning, match="`test` will stop, because its split can't be read: .* no such file"):
        samples_of(YoloData(str(absent)), tmp_path)
    with pytest.warns(UserWarning, match=f"`test` will stop at 1 bad record of .*{label}: line 1: "):
        samples_of(YoloData(str(config)), tmp_path)
    with pytest.raises(ConfigurationError, match=f"{label}: line 1: the box"):
        samples_of(YoloData(str(config)), tmp_path, stage="test")


def test_a_test_split_that_cannot_be_read_says_how_to_do_without_one(tmp_path: Path) -> None:
    config = roboflow(tmp_path / "x")
    shutil.rmtree(tmp_path / "x" / "test")  # as Roboflow exports a set without test images
    with pytest.raises(ConfigurationError, match=r"test: no such file or folder: .* without `test:` in data\.yaml, "):
        samples_of(YoloData(str(config)), tmp_path, stage="test")
    with pytest.warns(UserWarning, match=r"`test` will stop, .* without `test:` in data\.yaml, `test` uses the h"):
        samples_of(YoloData(str(config)), tmp_path)


def test_a_broken_file_of_the_test_split_does_not_stop_training(tmp_path: Path) -> None:
    files = {part: str(write("csv", tmp_path / part, part)) for part in ("train", "val", "test")}
    Path(files["test"]).write_text("image,label\n")

    def data() -> BoxCsvData:
        return BoxCsvData(files["train"], val_annotations=files["val"], test_annotations=files["test"])

    with pytest.warns(UserWarning, match="`test` will stop, because its split can't be read: .* no column for x0"):
        train, val = samples_of(data(), tmp_path)
    assert train
    assert val
    with pytest.raises(ConfigurationError, match=r"no column for x0.* without data\.test_annotations, `test`"):
        samples_of(data(), tmp_path, stage="test")
    for part in ("train", "val"):  # but those that are trained and evaluated on do
        broken = files | {part: files["test"], "test": files["val"]}
        with pytest.raises(ConfigurationError, match="no column for x0"):
            samples_of(BoxCsvData(broken["train"], val_annotations=broken["val"]), tmp_path)
