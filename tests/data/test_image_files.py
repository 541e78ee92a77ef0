"""Which files are images, and how they are read: links, hidden files, depths of grey, and Exif orientation by file."""

from __future__ import annotations

import io
import json
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers import formats
from tests.helpers.data import refused, samples_of
from vrft.data import CocoData, ImageFolderData, UnlabelledData, YoloData
from vrft.data.bad_records import BadRecords
from vrft.data.image_checks import check_images
from vrft.data.images import BadImage, check_header, check_image, image_suffixes, read_image
from vrft.data.record import Record
from vrft.data.record_checks import warn_of_first_frames
from vrft.errors import ConfigurationError

SUFFIXES = (".ppm", ".pgm", ".jfif", ".avif", ".jp2", ".jpg", ".PNG", ".webp", ".tif", ".gif", ".bmp")


def class_folders(folder: Path) -> Path:
    """Write two classes in the layout of torchvision's ImageFolder, with links, hidden and nested files."""
    picture = Image.new("RGB", (16, 16), "red")
    for suffix in SUFFIXES:
        formats.save(picture, folder / "set" / "cat" / f"a{suffix}")
    formats.save(picture, folder / "elsewhere" / "b.png")
    (folder / "set" / "dog").symlink_to(folder / "elsewhere")
    formats.save(picture, folder / "set" / "cat" / "deeper" / "c.png")
    formats.save(picture, folder / "far" / "e.png")
    (folder / "set" / "cat" / "linked").symlink_to(folder / "far")
    (folder / "set" / "cat" / "deeper" / "loop").symlink_to(folder / "set")
    for name in ("cat/._a.jpg", ".ipynb_checkpoints/d.png", "__MACOSX/cat/e.png", "cat/.thumbs/f.png", "top.png"):
        formats.save(picture, folder / "set" / name)
    (folder / "set" / "cat" / "notes.docx").write_text("x")
    (folder / "set" / "cat" / "gone.png").symlink_to(folder / "none.png")
    os.mkfifo(folder / "set" / "dog" / "pipe.png")
    return folder / "set"


def test_class_folders_follow_links_and_count_what_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = ImageFolderData(str(class_folders(tmp_path)), val_fraction=0.1, allow_outside=True)
    with caplog.at_level("INFO"):
        samples_of(data, tmp_path)
    records = [*data.train_set().records, *data.val_set().records]
    found = {(record.target, record.image.relative_to(tmp_path / "set").as_posix()) for record in records}  # type: ignore[union-attr]
    expected = {("cat", f"cat/a{suffix}") for suffix in SUFFIXES}
    assert found == expected | {("cat", "cat/deeper/c.png"), ("cat", "cat/linked/e.png"), ("dog", "dog/b.png")}
    for part in ("hidden files: 1", "hidden folders: 3", ".docx files: 1", "broken links or special files: 2"):
        assert part in caplog.text
    assert "files outside of class folders: 1" in caplog.text
    assert "2 classes to train on" in caplog.text


def test_prediction_and_data_take_the_same_files(tmp_path: Path) -> None:
    folder = class_folders(tmp_path)
    found = UnlabelledData([str(folder / "cat")], ["x"], allow_outside=True).records("val", BadRecords())
    assert {record.image.suffix for record in found} == {*SUFFIXES, ".png"}  # type: ignore[union-attr]
    assert ".eps" not in image_suffixes()  # Pillow runs Ghostscript for it
    Image.new("RGB", (9, 9)).save(tmp_path / "x.eps")
    with pytest.raises(BadImage, match="not a readable image"):
        read_image(tmp_path / "x.eps")


def test_class_folders_without_train_need_a_part_to_hold_out(tmp_path: Path) -> None:
    folder = str(class_folders(tmp_path))
    with pytest.raises(ConfigurationError, match=r"data\.val_fraction=0\.1 holds out a tenth of train, or of class"):
        ImageFolderData(folder)
    (tmp_path / "set" / "test").mkdir()
    with pytest.raises(ConfigurationError, match="has a folder test, but none called train"):
        ImageFolderData(folder, val_fraction=0.1)


def test_images_in_linked_folders_of_yolo_are_found(tmp_path: Path) -> None:
    config = formats.write_yolo(tmp_path / "x")
    for kind in ("images", "labels"):
        (tmp_path / "x" / kind / "train").rename(tmp_path / f"real_{kind}")
        (tmp_path / "x" / kind / "train").symlink_to(tmp_path / f"real_{kind}")
    train, _ = samples_of(YoloData(str(config), allow_outside=True), tmp_path)
    assert len({sample.image_id for sample in train}) == 4


RAMP = np.linspace(0, 65535, 64).round().astype(np.uint16).reshape(1, 64).repeat(4, 0)


def save_depth(kind: str, path: Path) -> Path:
    """Save the ramp in another depth."""
    arrays = {
        "int32": RAMP.astype(np.int32),
        "float": (RAMP / 65535).astype(np.float32),
        "float255": (RAMP / 257).astype(np.float32),
        "float65535": RAMP.astype(np.float32),
    }
    if kind == "pgm":
        path = path.with_suffix(".pgm")
        path.write_bytes(b"P5 64 4 65535\n" + RAMP.astype(">u2").tobytes())
    elif kind.startswith("bits"):
        path = path.with_suffix(".png")
        Image.fromarray(RAMP >> (16 - int(kind[4:]))).save(path)
    else:
        Image.fromarray(arrays[kind]).save(path)
    return path


@pytest.mark.parametrize(
    "kind", ["int32", "pgm", "float", "float255", "float65535", "bits14", "bits12", "bits10", "bits8"]
)
def test_greys_of_other_depths_look_like_a_16_bit_png(kind: str, tmp_path: Path) -> None:
    Image.fromarray(RAMP).save(tmp_path / "reference.png")
    path = save_depth(kind, tmp_path / "x.tif")
    expected = np.asarray(read_image(tmp_path / "reference.png")).astype(int)
    assert (expected[0, 0, 0], expected[0, -1, 0]) == (0, 255)
    assert np.abs(np.asarray(read_image(path)).astype(int) - expected).max() <= 1
    assert check_image(path) == (64, 4)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([-1024.0, 3071.0], "pixels from -1024 to 3071, expected none below 0"),
        ([0.0, float("nan")], "infinite or not a number"),
        ([0.0, 1e30], "expected at most 32 bits"),
    ],
)
def test_greys_without_a_scale_are_refused(values: list[float], said: str, tmp_path: Path) -> None:
    Image.fromarray(np.array([values] * 2, np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(BadImage, match=said):
        check_image(tmp_path / "x.tif")


def photo(path: Path, orientation: int, size: tuple[int, int]) -> None:
    """Save a white photo whose stored upper left corner is black."""
    picture = Image.new("RGB", size, "white")
    picture.paste("black", (0, 0, 8, 8))
    tags = Image.Exif()
    tags[0x0112] = orientation
    picture.save(path, exif=tags, quality=95)


def album(folder: Path, told: list[str]) -> CocoData:
    """Write photos with every orientation; those in `told` have sizes that show the convention of their boxes."""
    sizes = {"stored": (48, 32), "upright": (32, 48)}
    entries = [(f"told{i}.jpg", 6, (48, 32), sizes[name]) for i, name in enumerate(told)]
    entries += [(f"half{i}.jpg", i, (48, 32), (48, 32)) for i in (1, 2, 3, 4)]
    entries += [(f"square{i}.jpg", i, (32, 32), (32, 32)) for i in (5, 6, 7, 8)]
    images, boxes = [], []
    for i, (name, orientation, stored, annotated) in enumerate(entries):
        photo(folder / name, orientation, stored)
        images.append({"id": i, "file_name": name, "width": annotated[0], "height": annotated[1]})
        boxes.append({"id": i, "image_id": i, "category_id": 1, "bbox": [0, 0, 8, 8]})
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "corner"}]}
    (folder / "x.json").write_text(json.dumps(content))
    return CocoData(*[str(folder / "x.json"), str(folder)] * 2, shots=8 if told else None)


@pytest.mark.parametrize(("told", "dark"), [(["stored"], 9), (["upright"], 2), ([], 2)])
def test_orientation_is_decided_by_the_images_of_the_file_that_show_it(
    told: list[str], dark: int, tmp_path: Path
) -> None:
    """`dark`: photos whose box, in the upper left corner, covers the black corner; upright, those with 1 and 5."""
    data = album(tmp_path, told)
    if told:
        samples_of(data, tmp_path)
    else:
        with pytest.warns(UserWarning, match="7 images with an Exif orientation, .* which is assumed"):
            samples_of(data, tmp_path)
    covered = [data.val_set()[i].image.getpixel((3, 3))[0] < 60 for i in range(len(data.val_set()))]  # type: ignore[index]
    assert sum(covered) == dark
    chosen = {record.image.name: record.convention for record in data.train_set().records}  # type: ignore[union-attr]
    expected = "stored" if told == ["stored"] else "upright"
    assert {convention for name, convention in chosen.items() if name not in ("half1.jpg",)} == {expected}


def test_photos_of_one_file_that_contradict_each_other_are_bad_records(tmp_path: Path) -> None:
    message = refused(lambda **more: album(tmp_path, ["stored", "upright"]), tmp_path)
    assert "half2.jpg: its Exif orientation keeps the size, and other images contradict each other" in message


def test_files_with_several_frames_or_pages_are_counted(tmp_path: Path) -> None:
    first, second = (Image.new("RGB", (16, 16), colour) for colour in ("red", "green"))
    for name, settings in {"a.gif": {}, "b.png": {}, "c.webp": {}, "d.tif": {"compression": "raw"}}.items():
        first.save(tmp_path / name, save_all=True, append_images=[second], **settings)
    first.save(tmp_path / "photo.jpg", format="MPO", save_all=True, append_images=[second])  # the second is its preview
    first.save(tmp_path / "e.gif")
    headers = {path.name: check_header(path) for path in sorted(tmp_path.iterdir())}
    assert [name for name, header in headers.items() if header.several_frames] == ["a.gif", "b.png", "c.webp", "d.tif"]
    records = [Record((tmp_path / name,), name, name, "", "red") for name in headers]
    with pytest.warns(
        UserWarning, match=r"4 images with several frames or pages, e\.g\. .*a\.gif; the first frame is read"
    ):
        warn_of_first_frames(check_images(records, BadRecords(), None))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG", "MPO"])
def test_a_broken_later_frame_neither_crashes_nor_refuses_a_file_whose_first_frame_is_fine(
    kind: str, tmp_path: Path
) -> None:
    path, content = tmp_path / "x", io.BytesIO()
    frames = [Image.fromarray(np.random.default_rng(i).integers(0, 2, (8, 8, 3), np.uint8) * 255) for i in range(3)]
    frames[0].save(content, format=kind, save_all=True, append_images=frames[1:])
    data = content.getvalue()
    for end in range(0, len(data) + 1, max(1, len(data) // 40)):
        path.write_bytes(data[:end])
        try:
            read_image(path)
        except BadImage:
            with suppress(BadImage):
                check_header(path)
        else:
            check_header(path)
