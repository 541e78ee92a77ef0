"""Images of more than 8 bits: read as the pixels that were written, or refused with the reason."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.helpers.data import samples_of
from tests.helpers.deep_images import write_png, write_tiff
from vrft.data import ImageFolderData
from vrft.data.images import BadImage, check_image, read_image
from vrft.errors import ConfigurationError
from vrft.tasks import ClassificationTask

RAMP = np.linspace(0, 65535, 20 * 30).round().astype(np.uint16).reshape(20, 30)
RGB = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]], axis=-1)
GREY, WHITE = RAMP[..., None], np.full((20, 30, 1), 65535, np.uint16)
"""Pixels with values over the whole range; the upper byte of each is the right 8-bit value."""


def with_alpha(pixels: Any, alpha: Any = WHITE) -> Any:
    return np.concatenate([pixels, alpha], axis=-1)


TIFF_BIG = partial(write_tiff, order=">")
CASES = {
    "png": (write_png, RGB),
    "png_interlaced": (partial(write_png, interlaced=True), RGB),
    "png_grey": (write_png, GREY),
    "png_alpha": (write_png, with_alpha(RGB)),
    "png_alpha_interlaced": (partial(write_png, interlaced=True), with_alpha(RGB)),
    "png_grey_alpha": (write_png, with_alpha(GREY)),
    "png_grey_alpha_interlaced": (partial(write_png, interlaced=True), with_alpha(GREY)),
    "tiff": (write_tiff, RGB),
    "tiff_big_endian": (TIFF_BIG, RGB),
    "tiff_grey": (write_tiff, GREY),
    "tiff_grey_big_endian": (TIFF_BIG, GREY),
    "tiff_alpha": (partial(write_tiff, extra=2), with_alpha(RGB)),
    "tiff_fourth_channel": (partial(write_tiff, extra=0), with_alpha(RGB, GREY)),
}


@pytest.mark.parametrize("depth", [16, 12, 8])
@pytest.mark.parametrize("kind", CASES)
def test_colours_of_16_bits_are_read_whatever_their_depth(kind: str, depth: int, tmp_path: Path) -> None:
    write, pixels = CASES[kind]
    path = write(tmp_path / f"x.{kind[:3]}", pixels >> (16 - depth))
    assert check_image(path) == (30, 20)
    read = np.asarray(read_image(path))
    assert np.array_equal(read, np.broadcast_to(pixels[..., : 1 if "grey" in kind else 3] >> 8, (20, 30, 3)))


@pytest.mark.parametrize("kind", ["png_alpha", "png_grey_alpha", "tiff_alpha"])
def test_transparency_of_16_bits_becomes_white(kind: str, tmp_path: Path) -> None:
    write, pixels = CASES[kind]
    colours, alpha = pixels[..., :-1], RAMP.T.reshape(20, 30, 1)
    read = np.asarray(read_image(write(tmp_path / f"x.{kind[:3]}", with_alpha(colours, alpha))))
    share = alpha / 65535
    expected = (colours * share + 65535 * (1 - share)) / 257
    assert np.abs(read - np.broadcast_to(expected, read.shape)).max() <= 2.5  # both are rounded down


@pytest.mark.parametrize("pixels", [RGB, GREY])
def test_a_transparent_colour_of_16_bits_becomes_white(pixels: Any, tmp_path: Path) -> None:
    path = write_png(tmp_path / "x.png", pixels, key=pixels[4, 7].astype(">u2").tobytes())
    read = np.asarray(read_image(path))
    expected = np.broadcast_to(pixels >> 8, read.shape).copy()
    assert expected[4, 7].min() < 255
    expected[4, 7] = 255
    assert np.array_equal(read, expected)


@pytest.mark.parametrize(("bits", "key"), [(1, 0), (2, 2), (4, 14), (8, 5)])
def test_a_transparent_grey_of_few_bits_becomes_white(bits: int, key: int, tmp_path: Path) -> None:
    values = np.arange(64, dtype=np.uint16).reshape(8, 8, 1) % 2**bits
    path = write_png(tmp_path / "x.png", values, bits=bits, key=key.to_bytes(2, "big"))
    expected = np.where(values == key, 255, values.astype(int) * 255 // (2**bits - 1))
    assert np.array_equal(np.asarray(read_image(path)), expected.repeat(3, axis=-1))


def test_a_16_bit_photo_is_turned_upright(tmp_path: Path) -> None:
    for pixels, name in ((RGB >> 4, "rgb"), (with_alpha(GREY), "grey")):
        path = write_png(tmp_path / f"{name}.png", pixels, orientation=6)
        stored = np.asarray(read_image(path, (30, 20)))
        assert np.array_equal(np.asarray(read_image(path)), np.rot90(stored, 3))


@pytest.mark.parametrize(
    "pixels",
    [
        (GREY // 2).astype(np.int16),
        GREY.astype(np.uint32) * 65537,
        (GREY.astype(np.int64) * 32768).astype(np.int32),
        (GREY / 65535).astype(np.float32),
    ],
    ids=lambda pixels: str(pixels.dtype),
)
@pytest.mark.parametrize("white_is_zero", [False, True])
def test_greys_of_any_type_have_their_whole_range(pixels: Any, white_is_zero: bool, tmp_path: Path) -> None:
    if white_is_zero and pixels.dtype in (np.uint32, np.int16, np.int32):
        pixels = GREY  # Pillow reads no others with white as 0
    path = write_tiff(tmp_path / "x.tif", pixels, photometric=0 if white_is_zero else None)
    read = np.asarray(read_image(path)).astype(int)
    expected = np.broadcast_to(GREY >> 8, read.shape)
    assert np.abs(read - (255 - expected if white_is_zero else expected)).max() <= 1


@pytest.mark.parametrize(
    ("write", "pixels", "said"),
    [
        (partial(write_tiff, planes=True), RGB, "TIFF with a plane of more than 8 bits for each colour; convert"),
        (partial(write_tiff, extra=1), with_alpha(RGB), "16 bits per colour and premultiplied transparency; convert"),
        (write_tiff, (GREY >> 9).astype(np.int8), "TIFF with signed 8-bit pixels; convert the image to 8 bits"),
        (write_tiff, (RGB / 65535).astype(np.float32), "not a readable image: this is a TIFF .* convert it to PNG"),
        (write_tiff, (GREY / 65535).astype(np.float64), "not a readable image: this is a TIFF"),
        (write_tiff, RGB.astype(np.uint32), "not a readable image: this is a TIFF"),
    ],
)
def test_what_pillow_misreads_is_refused(write: Any, pixels: Any, said: str, tmp_path: Path) -> None:
    path = write(tmp_path / "x.tif", pixels)
    for read in (check_image, read_image):
        with pytest.raises(BadImage, match=said):
            read(path)


def test_colours_of_jpeg_2000_must_have_8_bits(tmp_path: Path) -> None:
    """Pillow wraps 16-bit colours near white to black."""
    Image.fromarray((RGB >> 8).astype(np.uint8)).save(tmp_path / "x.jp2")
    content = (tmp_path / "x.jp2").read_bytes()
    place = content.index(b"\xff\x4f\xff\x51") + 42
    assert content[place] == 7  # bits less 1
    assert check_image(tmp_path / "x.jp2") == (30, 20)
    (tmp_path / "deep.jp2").write_bytes(content[:place] + b"\x0f" + content[place + 1 :])
    with pytest.raises(BadImage, match="JPEG 2000 with 16 bits per colour; convert the image to 8 bits"):
        check_image(tmp_path / "deep.jp2")
    Image.fromarray(RAMP).save(tmp_path / "grey.jp2")
    assert np.abs(np.asarray(read_image(tmp_path / "grey.jp2"))[..., 0].astype(int) - (RAMP >> 8)).max() <= 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer; run `git lfs pull`"),
        (b"\n<!DOCTYPE html><html>", "an HTML page"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "this is HEIC; convert it to PNG or JPEG"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"\xff\xd8\xff\xc3", "a JPEG of a kind that Pillow can't read"),
        (bytes(128) + b"DICM", "DICOM"),
        (b"<svg xmlns='x'/>", "SVG"),
    ],
)
def test_files_that_are_no_images_are_named(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(BadImage, match=f"not a readable image: .*{said}"):
        check_image(tmp_path / "x.png")


@pytest.mark.parametrize("kind", ["png", "png_grey", "png_alpha", "tiff", "tiff_grey_big_endian"])
def test_images_of_one_camera_keep_their_brightness(kind: str, tmp_path: Path) -> None:
    """A dark frame of a 12-bit camera, whose brightest pixel needs 10 bits."""
    write, pixels = CASES[kind]
    dark = pixels >> 6
    path = write(tmp_path / f"x.{kind[:3]}", with_alpha(dark[..., :3], WHITE) if "alpha" in kind else dark)
    expected = np.broadcast_to(dark[..., : 1 if "grey" in kind else 3] >> 4, (20, 30, 3))
    assert np.array_equal(np.asarray(read_image(path, bits=12)), expected)
    assert np.asarray(read_image(path)).max() == 255


def test_the_bits_of_the_camera_are_stated_or_a_guess_is_reported(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    for name in "ab":
        write_png(tmp_path / "cat" / f"{name}.png", GREY >> 4)
    folder, shared = str(tmp_path), {"val_fraction": 0.5}
    with pytest.warns(UserWarning, match=r"1 image with more than 8 bits per colour, e.g. .*[ab]\.png\. The depth"):
        samples_of(ImageFolderData(folder, **shared), tmp_path, ClassificationTask())  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        samples_of(ImageFolderData(folder, image_bits=12, **shared), tmp_path, ClassificationTask())  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"image_bits: .*[ab]\.png: pixels up to 4095, expected at most 1023"):
        samples_of(ImageFolderData(folder, image_bits=10, **shared), tmp_path, ClassificationTask())  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"data.image_bits: expected a number from 9 to 32, got 8"):
        ImageFolderData(folder, image_bits=8, **shared)  # type: ignore[arg-type]
