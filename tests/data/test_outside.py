"""Images outside of their folder: refused by one line before any of them is opened, or read if the config says so."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

import vrft.data
from tests.helpers import formats
from tests.helpers.annotation_tools import TOOLS, write
from tests.helpers.data import samples_of
from vrft.data import (
    AircraftData,
    CocoData,
    CsvData,
    HubData,
    ImageFolderData,
    JsonlData,
    PetsData,
    ReasonSegData,
    RecordData,
    ReferenceData,
    SolutionData,
    UnlabelledData,
    YoloData,
)
from vrft.data.bad_records import BadRecords
from vrft.errors import ConfigurationError
from vrft.tasks import ClassificationTask, DetectionTask, GroundingTask, Task

Make = Callable[..., RecordData]


def tool(name: str) -> Callable[[Path], Make]:
    def prepare(folder: Path) -> Make:
        source = str(write(name, folder, count=3))
        return lambda **settings: TOOLS[name][0](source, val_fraction=0.5, **settings)

    return prepare


def coco(folder: Path) -> Make:
    (folder / "images").mkdir(parents=True)
    (folder / "x.json").write_text(json.dumps(formats.coco_tables(folder / "images", "train", 3)[0]))
    return lambda **settings: CocoData(str(folder / "x.json"), str(folder / "images"), val_fraction=0.5, **settings)


def lvis(folder: Path) -> Make:
    formats.write_lvis(folder, 3)
    return lambda **settings: CocoData(str(folder / "lvis_train.json"), str(folder), val_fraction=0.5, **settings)


def yolo(folder: Path) -> Make:
    config = str(formats.write_yolo(folder))
    return lambda **settings: YoloData(config, **settings)


def classes(folder: Path) -> Make:
    for i, (picture, label) in enumerate(formats.colours("train", 4)):
        formats.save(picture, folder / formats.CLASSES[label - 1] / f"{i}.png")
    return lambda **settings: ImageFolderData(str(folder), val_fraction=0.5, **settings)


def table(folder: Path) -> Make:
    names = [formats.save(picture, folder / f"{i}.png") for i, (picture, _) in enumerate(formats.scenes("train", 3))]
    (folder / "x.csv").write_text("".join(f"{name},red\n" for name in ["image,label", *names]).replace(",red", "", 1))
    return lambda **settings: CsvData(str(folder / "x.csv"), val_fraction=0.5, **settings)


def jsonl(folder: Path) -> Make:
    formats.write_jsonl(folder)
    return lambda **settings: JsonlData(str(folder / "train.jsonl"), val_fraction=0.5, **settings)


def hub(folder: Path) -> Make:
    """Write a table that only names its images."""
    import datasets

    pictures = [(str(folder / f"{i}.png"), *found) for i, found in enumerate(formats.solved("train", 3))]
    for path, picture, *_ in pictures:
        formats.save(picture, Path(path))
    rows = {"image": [{"path": row[0], "bytes": None} for row in pictures]}
    rows |= {"problem": [row[2] for row in pictures], "solution": [row[3] for row in pictures]}
    image = {"path": datasets.Value("string"), "bytes": datasets.Value("binary")}
    features = datasets.Features(
        {"image": image, "problem": datasets.Value("string"), "solution": datasets.Value("string")}
    )
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / "x.parquet")
    return lambda **settings: HubData(str(folder / "x.parquet"), val_fraction=0.5, **settings)


def reason_seg(folder: Path) -> Make:
    formats.write_reason_seg(folder)
    return lambda **settings: ReasonSegData(str(folder), **settings)


def references(folder: Path) -> Make:
    formats.write_references(folder, 2, form="json")
    files = [str(folder / name) for name in ("refs.json", "instances.json", "images")]
    return lambda **settings: ReferenceData(*files, **settings)


def official(write_official: Callable[[Path], Path], source: Callable[..., RecordData]) -> Callable[[Path], Make]:
    def prepare(folder: Path) -> Make:
        write_official(folder)
        return lambda **settings: source(str(folder), **settings)

    return prepare


SOURCES: dict[str, tuple[Callable[[Path], Make], Task]] = {
    **{name: (tool(name), DetectionTask()) for name in TOOLS},
    "coco": (coco, DetectionTask()),
    "lvis": (lvis, DetectionTask()),
    "yolo": (yolo, DetectionTask()),
    "classes": (classes, ClassificationTask()),
    "table": (table, ClassificationTask()),
    "jsonl": (jsonl, DetectionTask()),
    "hub": (hub, DetectionTask()),
    "reason_seg": (reason_seg, GroundingTask()),
    "references": (references, GroundingTask()),
    "pets": (official(formats.write_pets, PetsData), ClassificationTask()),
    "aircraft": (official(formats.write_aircraft, AircraftData), ClassificationTask()),
}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def images_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in (".png", ".jpg") and path.is_file())


def refusal(make: Make, tmp_path: Path, task: Task) -> str:
    """Return the line that stops a run, also one that skips bad records."""
    with pytest.raises(ConfigurationError) as caught:
        samples_of(make(on_bad_record="skip", on_missing_image="skip"), tmp_path, task)
    said = str(caught.value)
    assert said.endswith("; data.allow_outside=true reads images from anywhere")
    assert len(said.splitlines()) == 1
    return said


@pytest.mark.parametrize("name", SOURCES)
def test_links_that_lead_out_are_refused_unless_the_config_allows_them(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare, task = SOURCES[name]
    folder = tmp_path / "deep" / "x"
    folder.mkdir(parents=True)
    make = prepare(folder)
    before = [len(samples) for samples in samples_of(make(), tmp_path, task)]
    (tmp_path / "out").mkdir()
    for i, image in enumerate(images_in(folder)):
        image.rename(tmp_path / "out" / f"{i}{image.suffix}")
        image.symlink_to(os.path.relpath(tmp_path / "out" / f"{i}{image.suffix}", image.parent))
    with monkeypatch.context() as patch:
        patch.setattr("vrft.data.images.Image.open", lambda *_, **__: pytest.fail("an image was opened"))
        assert f"leads to {tmp_path}/out/" in refusal(make, tmp_path, task)
    assert [len(samples) for samples in samples_of(make(allow_outside=True), tmp_path, task)] == before


NAMES = {
    "voc": ("Annotations/0.xml", "0.png<", "Annotations/0.xml: filename: "),
    "labelme": ("labels/0.json", "..\\\\images\\\\0.png", "labels/0.json: imagePath: "),
    "cvat": ("annotations.xml", "0.png", "annotations.xml: image 0 ("),
    "via": ("via_project.json", '"filename": "0.png', "via_project.json: "),
    "csv": ("_annotations.csv", "0.png", "_annotations.csv: line 2: image: "),
    "coco": ("x.json", "000000000001.png", "x.json: image 1: file_name: "),
    "references": ("instances.json", "000000000001.png", "refs.json: [0] (ref_id 0): file_name: "),
    "table": ("x.csv", "0.png", "x.csv: line 2: image: "),
    "jsonl": ("train.jsonl", "images/train0.png", "train.jsonl: line 1: image: "),
    "hub": ("", "", "x.parquet: row 0: image: "),
    "yolo": ("data.yaml", "images/train", "data.yaml: train: "),
    "yolo_list": ("list.txt", "images/train/0.png", "list.txt: train: "),
}
"""Sources whose files name images: the file, the text in it, and the place that the message names."""


@pytest.mark.parametrize("way", ["absolute", "upwards"])
@pytest.mark.parametrize("name", NAMES)
def test_names_that_lead_out_are_refused_with_file_record_and_field(name: str, way: str, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "x"
    folder.mkdir(parents=True)
    prepare, task = SOURCES[name.removesuffix("_list")]
    make = prepare(folder)
    outside = tmp_path / "images" / "secret.png"
    formats.save(formats.scenes("train", 1)[0][0], outside)
    target = str(outside.parent if name == "yolo" else outside)
    target = f"{'../' * 20}{target[1:]}" if way == "upwards" else target
    file, text, said = NAMES[name]
    if name == "yolo_list":
        (folder / "data.yaml").write_text((folder / "data.yaml").read_text().replace("images/train", "list.txt"))
        (folder / "list.txt").write_text("images/train/0.png\nimages/train/1.png\n")
    if name == "hub":
        rename_in_table(folder / "x.parquet", target)
    else:
        content = (folder / file).read_text()
        assert text in content
        (folder / file).write_text(content.replace(text, text.replace(PICTURE.search(text)[0], target), 1))  # type: ignore[index]
    message = refusal(make, tmp_path, task)
    assert said in message
    assert "/images" in message


PICTURE = re.compile(r"[^\"<]*(png|images/train)")


def rename_in_table(file: Path, target: str) -> None:
    import datasets

    table = datasets.load_dataset("parquet", data_files=str(file), split="train")
    table.map(lambda row: row | {"image": {"path": target, "bytes": None}}).to_parquet(file)


def test_every_source_has_folders() -> None:
    sources = [found for name in vrft.data.__all__ if issubclass(found := getattr(vrft.data, name), RecordData)]
    assert len(sources) > 20
    abstract = (RecordData, SolutionData)
    assert [source for source in sources if source.image_folders is RecordData.image_folders] == [*abstract]


def test_folders_that_the_command_names_may_be_links(tmp_path: Path) -> None:
    folder, out = tmp_path / "x", tmp_path / "out"
    for i, (picture, label) in enumerate(formats.colours("train", 4)):
        formats.save(picture, out / formats.CLASSES[label - 1] / f"{i}.png")
    folder.symlink_to(out)
    data = ImageFolderData(str(folder), val_fraction=0.5)
    assert [len(samples) for samples in samples_of(data, tmp_path, ClassificationTask())] == [2, 2]
    images = images_in(out)
    (tmp_path / "one.png").symlink_to(images[0])
    predicted = UnlabelledData([str(tmp_path / "one.png"), str(folder)], ["x"])
    assert len(predicted.records("val", BadRecords())) == 5


def test_a_link_to_a_folder_outside_is_refused_before_it_is_searched(tmp_path: Path) -> None:
    (tmp_path / "x" / "red").mkdir(parents=True)
    (tmp_path / "x" / "red" / "all").symlink_to("/usr")
    make = lambda **settings: ImageFolderData(str(tmp_path / "x"), val_fraction=0.5, **settings)  # noqa: E731
    assert "x/red/all leads to /usr, outside of" in refusal(make, tmp_path, ClassificationTask())
    config = formats.write_yolo(tmp_path / "y")
    config.write_text(config.read_text().replace("images/train", ".."))
    said = refusal(lambda **settings: YoloData(str(config), **settings), tmp_path, DetectionTask())
    assert said.startswith(f"{config}: train: {config.parent}/..")
