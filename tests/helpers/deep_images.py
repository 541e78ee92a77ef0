"""Writers of images with more than 8 bits per colour, which Pillow doesn't write. Pixels are arrays (H, W, C)."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint16]

COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
"""PNG's number of the colour type by channels: grey, grey and alpha, RGB, RGBA."""

PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
"""First row and column, and steps of both, of the passes of an interlaced PNG."""


def packed(row: Pixels, bits: int) -> bytes:
    """Return the bytes of a row (W, C) with `bits` per number."""
    places = np.arange(bits)[::-1]
    return np.packbits(row.reshape(-1, 1) >> places & 1).tobytes()


def write_png(
    path: Path, pixels: Pixels, *, bits: int = 16, interlaced: bool = False, orientation: int = 1, key: bytes = b""
) -> Path:
    """Write a PNG of any depth. `key`: content of tRNS, the transparent colour."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width, channels = pixels.shape
    parts = [pixels[y::dy, x::dx] for y, x, dy, dx in PASSES] if interlaced else [pixels]
    rows = b"".join(b"\0" + packed(row, bits) for part in parts for row in part)
    exif = b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0) + bytes(4)
    header = struct.pack(">IIBBBBB", width, height, bits, COLOUR_TYPES[channels], 0, 0, interlaced)
    chunks = [(b"IHDR", header), (b"tRNS", key), (b"eXIf", exif), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name, part) for name, part in chunks if part or name != b"tRNS")
    )
    return path


def write_tiff(
    path: Path,
    pixels: NDArray[np.generic],
    *,
    order: str = "<",
    photometric: int | None = None,
    planes: bool = False,
    extra: int | None = None,
) -> Path:
    """Write a TIFF without compression.

    Args:
        path: file to write.
        pixels: greys or colours of any type.
        order: byte order, "<" or ">".
        photometric: PhotometricInterpretation; default: 0 is black, or RGB.
        planes: store each colour as a plane of its own.
        extra: meaning of the fourth channel: 0 is none, 1 is premultiplied alpha, 2 is alpha.
    """
    height, width, channels = pixels.shape
    parts = np.moveaxis(pixels, -1, 0) if planes else pixels[None]
    strips = [part.astype(part.dtype.newbyteorder(order)).tobytes() for part in parts]
    starts = [8 + sum(map(len, strips[:i])) for i in range(len(strips))]
    bits, kind = pixels.dtype.itemsize * 8, {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    tags = {
        256: [width],
        257: [height],
        258: [bits] * channels,
        259: [1],
        262: [(1 if channels == 1 else 2) if photometric is None else photometric],
        273: starts,
        277: [channels],
        278: [height],
        279: [*map(len, strips)],
        284: [2 if planes else 1],
        **({} if extra is None else {338: [extra]}),
        339: [kind] * channels,
    }
    at = 8 + sum(map(len, strips)) + 2 + 12 * len(tags) + 4
    entries, far = b"", b""
    for tag, values in tags.items():
        content = struct.pack(f"{order}{len(values)}I", *values)
        offset = content if len(values) == 1 else struct.pack(f"{order}I", at + len(far))
        far += b"" if len(values) == 1 else content
        entries += struct.pack(f"{order}HHI", tag, 4, len(values)) + offset
    mark = b"II" if order == "<" else b"MM"
    directory = struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + far
    start = struct.pack(f"{order}HI", 42, at - 2 - 12 * len(tags) - 4)
    path.write_bytes(mark + start + b"".join(strips) + directory)
    return path
