"""Read images upright and in RGB, and check them before training."""

from __future__ import annotations

import io
import os
import struct
import warnings
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple, Protocol

from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from vrft.data.depths import TooBright, deep_rgb, grey_rgb, is_deep, low_bytes, raw_mode, refuse_wrong_depths
from vrft.data.file_kinds import kind_of_file
from vrft.utils.regular_files import open_regular

MAX_PIXELS = 89_478_485
"""Maximum image size, the same as Pillow's. Above it, a small file may be a decompression bomb."""

MAX_ASPECT_RATIO = 200
"""Maximum of long side / short side, the same as in Qwen's processors."""

END_MARKERS = {"JPEG": b"\xff\xd9", "PNG": b"IEND", "GIF": b"\x3b"}
ORIENTATION = 0x0112
"""Exif tag of the rotation or flip that makes an image upright."""

UPRIGHT, ROTATED_90 = 1, (5, 6, 7, 8)

PNG_SCALES = {"L;2": 85, "L;4": 17}
"""Factors from greys of 2 and 4 bits to 8, by Pillow's raw mode."""

MAX_HEADER = 4096
"""Number of first bytes of a file that are read to find its format and depth."""

FRAMES = {"AVIF", "GIF", "PNG", "TIFF", "WEBP"}
"""Formats of animations and pages. MPO is left out: its further images are previews of a photo."""

DECODING_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    struct.error,
)
"""Errors that Pillow's decoders raise for broken files."""

UNREAD_FORMATS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
"""Formats that Pillow identifies, but reads only with another program or not at all."""

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


class MissingImage(BadImage):
    """Raised if an image does not exist."""


Convention = Literal["upright", "stored", "ambiguous", "same"]
"""Pixels that annotations refer to: `upright`, `stored`, or `same` if the image is stored upright.

`ambiguous`: an Exif orientation turns or mirrors the image, but the annotated size fits both, or there is none.
"""


class Header(NamedTuple):
    """Facts from an image's header."""

    size: tuple[int, int]
    """Width and height of the pixels that annotations refer to."""
    convention: Convention
    deep: bool = False
    """Whether pixels have more than 8 bits."""
    several_frames: bool = False
    """Whether the file has several frames or pages, of which the first is read."""


def read_image(
    source: ImageSource, size: tuple[int, int] | None = None, *, upright: bool = True, bits: int | None = None
) -> Image.Image:
    """Read an image as RGB.

    Exif orientation is applied, unless `size` (width, height) shows that the annotations ignore it. If `size` fits
    both, `upright` decides. Transparent parts become white. Images of more than 8 bits are converted by `eight_bits`;
    `bits` is the depth of the camera.

    Raises:
        TooBright: a pixel needs more than `bits` bits.
        BadImage: the image is missing, unreadable, truncated, too large, too elongated, or not of `size`.
    """
    with _open(source) as file, _decoding_errors_as_bad_image():
        image = _identify(file)
        convention = _header(image, size).convention
        return _to_rgb(image, file, turn=convention == "upright" or (convention == "ambiguous" and upright), bits=bits)


def check_image(source: ImageSource, size: tuple[int, int] | None = None) -> tuple[int, int]:
    """Return the width and height of an image, see `check_header`."""
    return check_header(source, size).size


def check_header(source: ImageSource, size: tuple[int, int] | None = None) -> Header:
    """Read an image's header, and check that the file is complete.

    An image is decoded only if its end marker is missing, so that thousands of files take seconds.

    Raises:
        BadImage: see `read_image`.
    """
    with _open(source) as file, _decoding_errors_as_bad_image():
        image = _identify(file)
        found = _header(image, size)._replace(deep=is_deep(image))
        found = found._replace(several_frames=_has_several_frames(image))
        marker = END_MARKERS.get(image.format or "")
        file.seek(0, os.SEEK_END)
        file.seek(-min(file.tell(), 64), os.SEEK_END)
        if marker is None or marker not in file.read():
            _to_rgb(_identify(file), file)
        return found


@cache
def image_formats() -> tuple[str, ...]:
    """Return Pillow's names of the supported formats."""
    Image.init()
    return tuple(sorted({*Image.OPEN} - UNREAD_FORMATS))


@cache
def image_suffixes() -> frozenset[str]:
    """Return the file suffixes of the supported formats, in lower case."""
    formats = image_formats()
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in formats)


def _open(source: ImageSource) -> BinaryIO:
    try:
        if not isinstance(source, Path):
            return io.BytesIO(source.read())
        return open_regular(source)
    except BadImage:
        raise
    except FileNotFoundError as error:
        raise MissingImage("no such image") from error
    except OSError as error:
        raise BadImage(f"can't be opened: {error.strerror}") from error
    except ValueError as error:  # the path contains a NUL
        raise BadImage(f"can't be opened: {error}") from error


@contextmanager
def _decoding_errors_as_bad_image() -> Iterator[None]:
    """Turn the errors that Pillow's decoders raise for broken files into BadImage."""
    try:
        yield
    except (BadImage, TooBright):
        raise
    except Image.DecompressionBombError as error:
        raise BadImage(f"more than {MAX_PIXELS} pixels") from error
    except DECODING_ERRORS as error:
        raise BadImage(f"can't be decoded: {error}") from error


def _identify(file: BinaryIO) -> ImageFile:
    file.seek(0)
    start = file.read(MAX_HEADER)
    file.seek(0)
    try:
        image = Image.open(file, formats=image_formats())
    except UnidentifiedImageError as error:
        found = kind_of_file(start)
        raise BadImage("not a readable image" + (f": {found}" if found else "")) from error
    refuse_wrong_depths(image, start)
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadImage(f"{width} x {height} is more than {MAX_PIXELS} pixels")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise BadImage(f"{width} x {height}: one side is more than {MAX_ASPECT_RATIO} times the other")
    return image


def _has_several_frames(image: ImageFile) -> bool:
    """Return whether the file has a second frame or page, which may be broken: only the first one is read."""
    if image.format not in FRAMES:
        return False
    try:
        return bool(getattr(image, "is_animated", False))
    except DECODING_ERRORS:
        return True


def _header(image: Image.Image, size: tuple[int, int] | None) -> Header:
    width, height = image.size
    orientation = _orientation(image)
    upright = (height, width) if orientation in ROTATED_90 else image.size
    if size not in (None, upright, image.size):
        raise BadImage(f"is {width} x {height}, expected {size[0]} x {size[1]}")
    if orientation == UPRIGHT:
        return Header(upright, "same")
    if size is None or upright == image.size:
        return Header(upright, "ambiguous")
    return Header(size, "upright" if size == upright else "stored")


def _orientation(image: Image.Image) -> int:
    """Return the Exif orientation, 1..8; 1 is upright."""
    if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
        return UPRIGHT  # Pillow rotates TIFF files itself, and would decode a PNG to look for a tag after its pixels
    found = image.getexif().get(ORIENTATION, UPRIGHT)
    return found if found in range(2, 9) else UPRIGHT


def _to_rgb(image: ImageFile, file: BinaryIO, *, turn: bool = False, bits: int | None = None) -> Image.Image:
    if image.format == "PNG" and (scale := PNG_SCALES.get(raw_mode(image))) and "transparency" in image.info:
        image.info["transparency"] *= scale  # Pillow scales the pixels, but not this value
    key = image.info.get("transparency")
    low = low_bytes(image, lambda: _identify(file))
    if low is not None:
        high, low = (ImageOps.exif_transpose(part) if turn else part for part in (image, low))
        return _on_white(deep_rgb(high, low, key, bits))
    upright = ImageOps.exif_transpose(image) if turn else image
    return grey_rgb(upright, bits) if image.mode[0] in "IF" else _on_white(upright)  # I, I;16 and its byte orders, F


def _on_white(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")
