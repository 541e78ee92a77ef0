"""Reading images: upright, in RGB, and never a surprise in the middle of a run."""

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
"""Larger images are refused: Pillow's own bound, above which a small file may be a bomb."""

MAX_ASPECT_RATIO = 200
"""Longer ones are refused: Qwen's processors take no image beyond it."""

END_MARKERS = {"JPEG": b"\xff\xd9", "PNG": b"IEND", "GIF": b"\x3b"}
ORIENTATION = 0x0112
"""Exif tag: how the pixels in the file have to be turned."""

UPRIGHT, ON_ITS_SIDE = 1, (5, 6, 7, 8)

SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # what it warns of is refused below


class StoredImage(Protocol):
    """An image that is part of a larger file."""

    def read(self) -> bytes:
        """The encoded image."""

    def key(self) -> Hashable:
        """The same for the same image, wherever it is stored."""


ImageSource = Path | StoredImage


class BadImage(ValueError):
    """An image can't be used; the message says why."""


def read_image(source: ImageSource, size: tuple[int, int] | None = None) -> Image.Image:
    """An image in RGB.

    Exif orientation is applied, unless `size` (width, height) says that the annotations were made without. Transparent
    parts become white, 16 bits become 8.

    Raises:
        BadImage: missing, unreadable, truncated, too large, too long, or not of `size`.
    """
    with _open(source) as file, _unreadable_is_bad():
        image = _identify(file)
        if _turned_size(image, size) is None or _orientation(image) == UPRIGHT:
            return _to_rgb(image)
        return _to_rgb(ImageOps.exif_transpose(image))


def check_image(source: ImageSource, size: tuple[int, int] | None = None) -> tuple[int, int]:
    """Width and height of an upright image, out of its header; that it is whole, by its end marker.

    Only an image without its end marker is decoded, so that thousands of files take seconds.

    Raises:
        BadImage: as `read_image`.
    """
    with _open(source) as file, _unreadable_is_bad():
        image = _identify(file)
        found = _turned_size(image, size) or image.size
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
    except (OSError, ValueError) as error:  # a name with a NUL in it is a ValueError
        raise BadImage(f"can't be opened: {error}") from error


@contextmanager
def _unreadable_is_bad() -> Iterator[None]:
    """What Pillow's decoders raise on broken files, as one error."""
    try:
        yield
    except BadImage:
        raise
    except Image.DecompressionBombError as error:
        raise BadImage(f"more than {MAX_PIXELS} pixels") from error
    except UnidentifiedImageError as error:
        raise BadImage("not an image that can be read") from error
    except (OSError, SyntaxError, ValueError, TypeError, EOFError, struct.error) as error:
        raise BadImage(f"can't be decoded: {error}") from error


def _identify(file: BinaryIO) -> Image.Image:
    image = Image.open(file)
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadImage(f"{width} x {height} are more than {MAX_PIXELS} pixels")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise BadImage(f"{width} x {height}: one side is more than {MAX_ASPECT_RATIO} times the other")
    return image


def _turned_size(image: Image.Image, size: tuple[int, int] | None) -> tuple[int, int] | None:
    """The size once its orientation is applied; None if it is not to be, because `size` is that of the pixels."""
    width, height = image.size
    turned = (height, width) if _orientation(image) in ON_ITS_SIDE else image.size
    if size is None or size == turned:
        return turned
    if size == image.size:
        return None
    raise BadImage(f"is {width} x {height}, expected {size[0]} x {size[1]}")


def _orientation(image: Image.Image) -> int:
    """How the pixels have to be turned; 1 if they have not to be."""
    if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
        return UPRIGHT  # Pillow turns TIFF files itself, and would decode a PNG to look for a tag behind its pixels
    found = image.getexif().get(ORIENTATION, UPRIGHT)
    return found if isinstance(found, int) else UPRIGHT


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in SIXTEEN_BITS:
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        whole = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", whole.size, "white"), whole).convert("RGB")
    return image.convert("RGB")
