"""Reading images upright and in RGB, and checking them before training."""

from __future__ import annotations

import io
import os
import struct
import warnings
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 89_478_485
"""Limit on image size: Pillow's own, above which a small file may be a decompression bomb."""

MAX_ASPECT_RATIO = 200
"""Limit on long side / short side: that of Qwen's processors."""

END_MARKERS = {"JPEG": b"\xff\xd9", "PNG": b"IEND", "GIF": b"\x3b"}
ORIENTATION = 0x0112
"""Exif tag of the rotation or flip that makes an image upright."""

UPRIGHT, ROTATED_90 = 1, (5, 6, 7, 8)

SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # such images raise BadImage below


class StoredImage(Protocol):
    """An image stored inside a larger file."""

    def read(self) -> bytes:
        """Return the encoded image."""

    def key(self) -> Hashable:
        """Return a key that depends on the image's content alone."""


ImageSource = Path | StoredImage


class BadImage(ValueError):
    """Raised for an unusable image; the message gives the reason."""


def read_image(source: ImageSource, size: tuple[int, int] | None = None) -> Image.Image:
    """Read an image as RGB.

    Exif orientation is applied, unless `size` (width, height) shows that the annotations ignore it. Transparent parts
    become white; 16-bit channels become 8-bit.

    Raises:
        BadImage: the image is missing, unreadable, truncated, too large, too elongated, or not of `size`.
    """
    with _open(source) as file, _decoding_errors_as_bad_image():
        image = _identify(file)
        if _upright_size(image, size) is None or _orientation(image) == UPRIGHT:
            return _to_rgb(image)
        return _to_rgb(ImageOps.exif_transpose(image))


def check_image(source: ImageSource, size: tuple[int, int] | None = None) -> tuple[int, int]:
    """Return the upright width and height from an image's header, and check that the file is complete.

    An image is decoded only if its end marker is missing, so that thousands of files take seconds.

    Raises:
        BadImage: see `read_image`.
    """
    with _open(source) as file, _decoding_errors_as_bad_image():
        image = _identify(file)
        found = _upright_size(image, size) or image.size
        marker = END_MARKERS.get(image.format or "")
        file.seek(0, os.SEEK_END)
        file.seek(-min(file.tell(), 64), os.SEEK_END)
        if marker is None or marker not in file.read():
            file.seek(0)
            _to_rgb(_identify(file))
        return found


def _open(source: ImageSource) -> BinaryIO:
    try:
        return source.open("rb") if isinstance(source, Path) else io.BytesIO(source.read())
    except FileNotFoundError as error:
        raise BadImage("no such image") from error
    except (OSError, ValueError) as error:  # ValueError: the path contains a NUL
        raise BadImage(f"can't be opened: {error}") from error


@contextmanager
def _decoding_errors_as_bad_image() -> Iterator[None]:
    """Turn the errors that Pillow's decoders raise on broken files into BadImage."""
    try:
        yield
    except BadImage:
        raise
    except Image.DecompressionBombError as error:
        raise BadImage(f"more than {MAX_PIXELS} pixels") from error
    except UnidentifiedImageError as error:
        raise BadImage("not a readable image") from error
    except (OSError, SyntaxError, ValueError, TypeError, EOFError, struct.error) as error:
        raise BadImage(f"can't be decoded: {error}") from error


def _identify(file: BinaryIO) -> Image.Image:
    image = Image.open(file)
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadImage(f"{width} x {height} is more than {MAX_PIXELS} pixels")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise BadImage(f"{width} x {height}: one side is more than {MAX_ASPECT_RATIO} times the other")
    return image


def _upright_size(image: Image.Image, size: tuple[int, int] | None) -> tuple[int, int] | None:
    """Return the size with orientation applied, or None if `size` is that of the stored pixels instead."""
    width, height = image.size
    upright = (height, width) if _orientation(image) in ROTATED_90 else image.size
    if size is None or size == upright:
        return upright
    if size == image.size:
        return None
    raise BadImage(f"is {width} x {height}, expected {size[0]} x {size[1]}")


def _orientation(image: Image.Image) -> int:
    """Return the Exif orientation, 1..8; 1 is upright."""
    if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
        return UPRIGHT  # Pillow rotates TIFF files itself, and would decode a PNG to look for a tag after its pixels
    found = image.getexif().get(ORIENTATION, UPRIGHT)
    return found if isinstance(found, int) else UPRIGHT


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in SIXTEEN_BITS:
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")
