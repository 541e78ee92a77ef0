"""Images: every mode becomes RGB, orientation is applied, and broken or too large files are found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.helpers.coco import BOX, GOOD, IMAGE, OTHER, coco_data
from tests.helpers.data import samples_of
from vrft.data.images import BadImage, check_image, read_image
from vrft.errors import ConfigurationError


def test_an_image_that_turns_unreadable_is_replaced_in_training_and_blank_in_evaluation(tmp_path: Path) -> None:
    changes = {"images": [IMAGE, OTHER], "annotations": [BOX | {"id": 1}, GOOD]}
    data = coco_data(tmp_path, changes)
    samples_of(data, tmp_path)
    (tmp_path / "a.png").write_bytes(b"gone")
    replaced, blank = data.train_set()[0], data.val_set()[0]
    assert (replaced.image_id, replaced.index) == (8, 1)
    assert (blank.image_id, blank.index, blank.size) == (7, 0, (40, 30))
    for sample in (replaced, blank):
        assert "a.png" in sample.metadata["replaced"][0] or "image 7" in sample.metadata["replaced"][0]
    (tmp_path / "b.png").unlink()
    with pytest.raises(ConfigurationError, match="no training image can be read any more"):
        data.train_set()[0]


@pytest.mark.parametrize(
    ("mode", "fill", "expected"),
    [
        ("RGBA", (10, 20, 30, 0), (255, 255, 255)),  # transparent pixels become white regardless of their colour
        ("LA", (50, 255), (50, 50, 50)),
        ("L", 77, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("P", 3, None),
        ("CMYK", (0, 0, 0, 0), (255, 255, 255)),
        ("I;16", 40_000, (156, 156, 156)),  # the upper 8 bits
    ],
)
def test_an_image_of_any_mode_becomes_rgb(
    mode: str, fill: Any, expected: tuple[int, ...] | None, tmp_path: Path
) -> None:
    path = tmp_path / ("x.tiff" if mode == "CMYK" else "x.png")
    Image.new(mode, (30, 20), fill).save(path)
    image = read_image(path)
    assert (image.mode, image.size, check_image(path)) == ("RGB", (30, 20), (30, 20))
    assert expected in (None, image.getpixel((3, 3)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_unless_the_annotations_were_made_without(orientation: int, tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    picture = Image.new("RGB", (64, 32), "white")
    picture.paste("black", (0, 0, 16, 16))
    tags = Image.Exif()
    tags[0x0112] = orientation
    picture.save(path, exif=tags, quality=95)
    turned = (32, 64) if orientation > 4 else (64, 32)
    assert check_image(path) == check_image(path, turned) == read_image(path).size == turned
    reference = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    assert np.array_equal(np.asarray(read_image(path)), np.asarray(reference))
    if orientation > 4:
        assert check_image(path, (64, 32)) == (64, 32)
        assert max(read_image(path, (64, 32)).getpixel((4, 4))) < 40  # as stored in the file
    with pytest.raises(BadImage, match="expected 10 x 10"):
        check_image(path, (10, 10))


@pytest.mark.parametrize(
    ("size", "reason"), [((20_000, 20_000), "pixels"), ((9500, 9500), "is more than"), ((2100, 10), "one side")]
)
def test_decompression_bombs_and_elongated_images_are_refused(
    size: tuple[int, int], reason: str, tmp_path: Path
) -> None:
    Image.new("1", size).save(tmp_path / "x.png")  # takes a few kilobytes
    for read in (read_image, check_image):
        with pytest.raises(BadImage, match=reason):
            read(tmp_path / "x.png")


def test_a_truncated_jpeg_is_found_without_decoding_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.effect_noise((200, 200), 90).convert("RGB").save(tmp_path / "x.jpg")
    whole = (tmp_path / "x.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "padded.jpg").write_bytes(whole + b"\0" * 100)  # complete, but its end marker is not at the end
    with pytest.raises(BadImage, match="truncated"):
        check_image(tmp_path / "cut.jpg")
    assert check_image(tmp_path / "padded.jpg") == (200, 200)
    monkeypatch.setattr(Image.Image, "convert", None)
    assert check_image(tmp_path / "x.jpg") == (200, 200)
