"""Convert pixels of any depth to 8 bits.

Pillow decodes greys of 16 and 32 bits in full, but keeps only 8 bits of 16-bit colours.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, SAMPLEFORMAT, TiffImageFile

from vrft.errors import ConfigurationError

DEPTHS = (8, 10, 12, 14, 16, 24, 32)
"""Bits per pixel of cameras and files."""

MAX_FRACTION = 1.5
"""Maximum value of float images with nominal range 0..1, which sharpening and resampling may exceed."""

WHITE_IS_ZERO = 0
"""TIFF's PhotometricInterpretation of images in which 0 is white."""

UNSIGNED, SIGNED = 1, 2
"""TIFF's SampleFormat of integers."""

OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
"""The opposite byte order, by the last letter of Pillow's raw modes."""

SIZ_MARKER, BEFORE_DEPTH = b"\xff\x4f\xff\x51", 42
"""Start of a JPEG 2000 stream, and the offset from there to the depth of its first component."""


class TooBright(ValueError):
    """Raised for an image with values that need more bits than the camera has."""


def check_image_bits(image_bits: int | None) -> None:
    """Raise ConfigurationError for a depth that no camera has, or for 8 bits, which need no setting."""
    if image_bits is not None and not 8 < image_bits <= 32:
        raise ConfigurationError(f"data.image_bits: expected a number from 9 to 32, got {image_bits}")


def eight_bits(values: NDArray[Any], max_bits: int = 32, bits: int | None = None) -> NDArray[np.uint8]:
    """Convert values to 8 bits.

    Files don't state how many of their bits a camera used, so the depth is the smallest of `DEPTHS` that can hold the
    brightest value. Floats up to `MAX_FRACTION` are interpreted as 0..1.

    Args:
        values: greys or colours of an image.
        max_bits: largest depth that the file can have.
        bits: depth of the camera; default: determined by the brightest value.

    Raises:
        TooBright: a value needs more than `bits` bits.
        ValueError: a value is infinite, NaN, above 32 bits, or negative other than in floats that nearly fit 0..1.

    >>> eight_bits(np.array([[0, 2048, 4095]])).tolist()
    [[0, 128, 255]]
    >>> eight_bits(np.array([[0.0, 0.5, 1.0]])).tolist()
    [[0, 127, 255]]
    """
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise ValueError("pixels are infinite or not a number; convert the image to 8 bits")
    if values.dtype.kind == "f" and high <= MAX_FRACTION and low >= 1 - MAX_FRACTION:
        return np.asarray(values.clip(0, 1) * 255).astype(np.uint8)
    if low < 0:
        raise ValueError(f"pixels from {low:g} to {high:g}, expected none below 0; convert the image to 8 bits")
    if bits is not None and high >= 2**bits:
        raise TooBright(f"pixels up to {high:g}, expected at most {2**bits - 1}, the largest number of {bits} bits")
    return np.asarray(values // 2 ** ((bits or min(depth_of(high), max_bits)) - 8)).astype(np.uint8)


def depth_of(high: float) -> int:
    """Return the depth of an image with the brightest value `high`. Raise ValueError if it needs more than 32 bits."""
    depth = next((bits for bits in DEPTHS if high < 2**bits), None)
    if depth is None:
        raise ValueError(f"pixels up to {high:g}, expected at most 32 bits; convert the image to 8 bits")
    return depth


def grey_rgb(image: Image.Image, camera_bits: int | None = None) -> Image.Image:
    """Convert greys of modes I, I;16 and F to RGB. Apply TIFF's sign and white, which Pillow ignores."""
    values, max_bits, inverted = np.asarray(image), 32, False
    if isinstance(image, TiffImageFile):
        tags = image.tag_v2
        bits, sign = tags.get(BITSPERSAMPLE, (1,))[0], tags.get(SAMPLEFORMAT, (UNSIGNED,))[0]
        inverted = tags.get(PHOTOMETRIC_INTERPRETATION) == WHITE_IS_ZERO
        if sign == UNSIGNED and bits == 32:
            values = values.view(np.uint32)
        elif sign == SIGNED:
            max_bits = bits - 1
    grey = eight_bits(values, max_bits, camera_bits)
    grey = 255 - grey if inverted else grey
    if (key := image.info.get("transparency")) is not None:
        grey[values == key] = 255
    return Image.fromarray(grey).convert("RGB")


def refuse_wrong_depths(image: ImageFile, start: bytes) -> None:
    """Raise ValueError for depths that Pillow decodes to wrong values.

    Args:
        image: image that is not decoded yet.
        start: first bytes of the file.
    """
    found = None
    if image.format == "JPEG2000" and image.mode[0] != "I" and (at := start.find(SIZ_MARKER)) >= 0:
        depth = (start[at + BEFORE_DEPTH] & 0x7F) + 1
        found = f"JPEG 2000 with {depth} bits per colour" if depth > 8 else None
    elif isinstance(image, TiffImageFile):
        tags = image.tag_v2
        deep = max(tags.get(BITSPERSAMPLE, (1,))) > 8
        if image.mode == "L" and tags.get(SAMPLEFORMAT, (UNSIGNED,))[0] == SIGNED:
            found = "TIFF with signed 8-bit pixels"
        elif deep and len(image.tile) > 1 and len(raw_mode(image)) == 1 and image.mode[0] != "I":
            found = "TIFF with a plane of more than 8 bits for each colour"
        elif raw_mode(image).startswith("RGBa;16"):
            found = "TIFF with 16 bits per colour and premultiplied transparency"
    if found is not None:
        raise ValueError(f"{found}; convert the image to 8 bits")


def is_deep(image: ImageFile) -> bool:
    """Return whether an image, not decoded yet, has more than 8 bits, so that `eight_bits` converts it."""
    return image.mode[0] in "IF" or ";16" in raw_mode(image)


def raw_mode(image: ImageFile) -> str:
    """Return Pillow's name for the pixel layout of an image that is not decoded yet; empty if its decoder has none."""
    arguments = image.tile[0].args if image.tile else ""
    name = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return name if isinstance(name, str) else ""


def low_bytes(image: ImageFile, reopen: Callable[[], ImageFile]) -> Image.Image | None:
    """Decode an image and return the low bytes of its 16-bit colours; None for other images.

    Decoded in the opposite byte order, the byte that Pillow keeps is the low one.
    """
    layout = raw_mode(image)
    image.load()
    if layout == "LA;16B":  # read the two 16-bit numbers of a pixel as four bytes
        _, grey, _, alpha = _decode_as(reopen(), "RGBA").split()
        return Image.merge("RGBA", (grey, grey, grey, alpha))
    if layout[:-1] in ("RGB;16", "RGBA;16", "RGBX;16"):
        return _decode_as(reopen(), layout[:-1] + OTHER_ORDER[layout[-1]])
    return None


def _decode_as(image: ImageFile, layout: str) -> Image.Image:
    arguments = [(layout, *tile.args[1:]) if isinstance(tile.args, tuple) else layout for tile in image.tile]
    image.tile = [tile._replace(args=args) for tile, args in zip(image.tile, arguments, strict=True)]
    image.load()
    return image


def deep_rgb(
    high: Image.Image, low: Image.Image, key: tuple[int, ...] | None, camera_bits: int | None = None
) -> Image.Image:
    """Convert 16-bit colours, given as images of high and low bytes, to 8-bit RGB, or RGBA if `key` is transparent."""
    values = np.asarray(high).astype(np.uint16) << 8 | np.asarray(low)
    rgb, alpha = eight_bits(values[..., :3], bits=camera_bits), values[..., 3:]
    if alpha.size:
        depth = camera_bits or depth_of(float(values[..., :3].max()))
        depth = depth if alpha.max() < 2**depth else 16
        return Image.fromarray(np.concatenate([rgb, (alpha >> (depth - 8)).astype(np.uint8)], axis=-1))
    if key is not None:
        rgb[(values == key).all(-1)] = 255
    return Image.fromarray(rgb)
