"""Recognise files that are not readable images by their first bytes."""

from __future__ import annotations

CONVERT = "convert it to PNG or JPEG"

SIGNATURES = (
    (0, b"", "the file is empty"),
    (0, b"version https://git-lfs", "this is a Git LFS pointer; run `git lfs pull`"),
    (0, b"\xff\xd8\xff", f"this is a JPEG of a kind that Pillow can't read, e.g. with 12 bits or lossless; {CONVERT}"),
    (0, b"\x89PNG", "this is a broken PNG"),
    (0, b"II*\0", f"this is a TIFF or a camera's raw file of a kind that Pillow can't read; {CONVERT}"),
    (0, b"MM\0*", f"this is a TIFF or a camera's raw file of a kind that Pillow can't read; {CONVERT}"),
    (0, b"II+\0", f"this is a BigTIFF of a kind that Pillow can't read; {CONVERT}"),
    (0, b"\xff\x0a", f"this is JPEG XL; {CONVERT}"),
    (4, b"JXL ", f"this is JPEG XL; {CONVERT}"),
    (0, b"PF\n", f"this is a PFM with colours; {CONVERT}"),
    (0, b"v/1\x01", f"this is OpenEXR; {CONVERT}"),
    (0, b"#?RADIANCE", f"this is Radiance HDR; {CONVERT}"),
    (128, b"DICM", f"this is DICOM; {CONVERT}"),
    (0, b"\x93NUMPY", f"this is a NumPy array; {CONVERT}"),
    (0, b"%PDF", f"this is a PDF; {CONVERT}"),
    (0, b"PK\x03\x04", "this is a zip archive; unpack it"),
)
"""Offset and magic bytes of each kind of file, with its description. An empty file has no bytes."""

HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")


def kind_of_file(start: bytes) -> str | None:
    r"""Return a description of a file that Pillow can't read, or None if its kind is unknown.

    >>> kind_of_file(b"\x00\x00\x00\x18ftypheic")
    'this is HEIC; convert it to PNG or JPEG'
    """
    if start[4:8] == b"ftyp" and start[8:12] in HEIF_BRANDS:
        return f"this is HEIC; {CONVERT}"
    for offset, signature, name in SIGNATURES:
        if start[offset : offset + len(signature)] == signature and bool(signature) == bool(start):
            return name
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "this is an HTML page, e.g. an error message in place of a download"
    if text.startswith((b"<svg", b"<?xml")):
        return f"this is SVG or other XML; {CONVERT}"
    return None
