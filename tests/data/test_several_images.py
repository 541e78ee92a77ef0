"""Questions about several images, from files to prompts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.helpers.data import refused, said_of, samples_of
from vrft.data import CocoData, HubData, JsonlData, RecordData
from vrft.errors import ConfigurationError
from vrft.tasks import ClassificationTask, DetectionTask, Task
from vrft.types import Frame

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
BOX = "[{'Position': [0, 0, 500, 500], 'Confidence': 1.0}]"


def pictures(folder: Path) -> None:
    """Write an image of each colour, each of another size."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, (name, colour) in enumerate(COLOURS.items()):
        Image.new("RGB", (40 + 10 * i, 30), colour).save(folder / f"{name}.png")


def row(*names: str, **fields: Any) -> dict[str, Any]:
    return {"images": [f"{name}.png" for name in names], "problem": "Which?", "solution": "red"} | fields


def jsonl(folder: Path, *rows: dict[str, Any]) -> Callable[..., JsonlData]:
    pictures(folder)
    for part in ("train", "val"):
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return lambda **more: JsonlData(str(folder / "train.jsonl"), str(folder / "val.jsonl"), **more)


def hub(folder: Path, *rows: dict[str, Any]) -> Callable[..., HubData]:
    import datasets

    pictures(folder)
    cells = [
        None if row["images"] is None else [{"bytes": (folder / name).read_bytes()} for name in row["images"]]
        for row in rows
    ]
    columns = {key: [row.get(key) for row in rows] for key in ("problem", "solution", "image_index")}
    table = datasets.Dataset.from_dict({"images": cells, **columns})
    table = table.cast_column("images", datasets.List(datasets.Image()))
    for part in ("train", "val"):
        table.to_parquet(folder / f"{part}.parquet")
    return lambda **more: HubData(str(folder / "train.parquet"), str(folder / "val.parquet"), **more)


def coco(folder: Path, context: Any) -> Callable[..., CocoData]:
    pictures(folder)
    entry = {"id": 1, "file_name": "blue.png", "width": 60, "height": 30, "context_images": context}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 30, 15]}
    content = {"images": [entry], "annotations": [box], "categories": [{"id": 1, "name": "cat"}]}
    good = content | {"images": [entry | {"context_images": None}]}
    (folder / "train.json").write_text(json.dumps(content), encoding="utf-8")
    (folder / "val.json").write_text(json.dumps(good), encoding="utf-8")
    return lambda **more: CocoData(str(folder / "train.json"), val_annotations=str(folder / "val.json"), **more)


def colours(images: tuple[Image.Image, ...]) -> list[str]:
    names = {colour: name for name, colour in COLOURS.items()}
    return [names[tuple(np.asarray(image)[0, 0].tolist())] for image in images]


@pytest.mark.parametrize("write", [jsonl, hub])
def test_images_keep_their_order_and_boxes_their_image(
    write: Callable[..., Callable[..., RecordData]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [row("red", "green", "blue", solution=BOX, image_index=1), row("green", solution=BOX)]
    train, _ = samples_of(write(tmp_path / "x", *rows)(), tmp_path)
    assert [colours(sample.images) for sample in train] == [["red", "green", "blue"], ["green"]]
    for sample in train:  # half of the width of the green image, which is 50 pixels wide
        assert sample.size == (50, 30)
        assert sample.target[0].box == (0, 0, 25, 15)  # type: ignore[union-attr]
        assert "images" not in sample.metadata


def test_context_images_are_shown_before_the_image_of_the_boxes(tmp_path: Path) -> None:
    train, val = samples_of(coco(tmp_path / "x", ["red.png", "green.png"])(), tmp_path)
    assert colours(train[0].images) == ["red", "green", "blue"]
    assert colours(val[0].images) == ["blue"]
    assert (train[0].image_index, train[0].size, train[0].target[0].box) == (2, (60, 30), (0, 0, 30, 15))  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("bad", "task", "said"),
    [
        (row("red", "none"), ClassificationTask(), "none.png: no such image"),
        (
            row("red", "blue", solution=BOX),
            None,
            "image_index: expected the place, from 0, of the image",
        ),
        (row("red", "blue", image_index=2), ClassificationTask(), "image_index: expected 0 to 1, got 2"),
        (row("red", image_index="1"), ClassificationTask(), "image_index: expected a whole number, got '1'"),
        (row("red", image="red.png"), ClassificationTask(), "expected either image or images, got both"),
        (row("red") | {"images": []}, ClassificationTask(), "images: expected a list of relative paths, got []"),
        (row("red") | {"images": "red.png"}, ClassificationTask(), "images: expected a list of relative paths"),
    ],
)
def test_bad_images_are_reported(bad: dict[str, Any], task: Task | None, said: str, tmp_path: Path) -> None:
    good = row("red", solution=BOX if task is None else "red")
    assert said in said_of(jsonl(tmp_path / "x", good, bad), tmp_path, task)


@pytest.mark.parametrize("write", [jsonl, hub])
def test_a_place_without_image_is_reported_before_records_are_chosen_by_image(
    write: Callable[..., Callable[..., RecordData]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    make = write(tmp_path / "x", row("red"), row("green"), row("red", "blue", image_index=2))
    with pytest.raises(ConfigurationError, match="image_index: expected 0 to 1, got 2"):
        samples_of(make(val_shots=1), tmp_path, ClassificationTask())


@pytest.mark.parametrize("images", [None, []])
def test_a_row_of_hub_data_without_images_is_reported(
    images: list[str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    make = hub(tmp_path / "x", row("red"), row() | {"images": images})
    assert "row 1: images: expected a list of images, got none" in said_of(make, tmp_path, ClassificationTask())


def test_a_bad_list_of_context_images_is_reported(tmp_path: Path) -> None:
    message = refused(coco(tmp_path / "x", "red.png"), tmp_path)
    assert "context_images: expected a list of file names, got 'red.png'" in message


def test_every_image_stays_in_its_folder(tmp_path: Path) -> None:
    make = jsonl(tmp_path / "x", row("red", "../elsewhere"))
    Image.new("RGB", (40, 30)).save(tmp_path / "elsewhere.png")
    assert "data.allow_outside=true" in refused(make, tmp_path, ClassificationTask())
    train, _ = samples_of(make(allow_outside=True), tmp_path, ClassificationTask())
    assert train[0].num_images == 2


def test_augmentation_of_several_images_is_refused(tmp_path: Path) -> None:
    from kornia.augmentation import RandomHorizontalFlip

    make = jsonl(tmp_path / "x", row("red", "blue"))
    message = refused(
        lambda **more: make(augmentation=[RandomHorizontalFlip()], **more), tmp_path, ClassificationTask()
    )
    assert message.startswith(f"data.augmentation: {tmp_path / 'x' / 'train.jsonl'}: line 1 has 2 images")


def test_a_rotated_photo_turns_all_images_of_its_question(tmp_path: Path) -> None:
    """The boxes of the second image are in its stored pixels, by its size."""
    make = coco(tmp_path / "x", ["red.png"])
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, size in (("red", (40, 30)), ("blue", (60, 30))):
        Image.new("RGB", size, COLOURS[name]).save(tmp_path / "x" / f"{name}.png", exif=exif)
    train, _ = samples_of(make(), tmp_path)
    assert [image.size for image in train[0].images] == [(40, 30), (60, 30)]


def test_the_prompt_has_a_place_for_each_image_and_says_which_one_is_meant(tmp_path: Path) -> None:
    (sample,), _ = samples_of(coco(tmp_path / "x", ["red.png"])(), tmp_path)
    task = DetectionTask("Where is {query}?")
    (turn,) = task.messages(sample, Frame(1000, 1000))
    *places, text = turn["content"]
    assert places == [{"type": "image"}] * 2
    assert text["text"] == "Image 2 of 2 is meant. Where is cat?"
    (turn,) = ClassificationTask("What is it?").messages(sample, Frame(1000, 1000))
    assert turn["content"][-1]["text"] == "What is it?"
