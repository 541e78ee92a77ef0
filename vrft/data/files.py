"""Helpers for reading files: required paths, text, JSON, type checks and values in messages."""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeGuard, TypeVar
from xml.etree.ElementTree import Element

from vrft.errors import ConfigurationError
from vrft.utils.display import LONE_SURROGATE
from vrft.utils.regular_files import read_regular
from vrft.utils.xml_text import declared_encoding, decode_xml

MAX_COORDINATE = 1e9

UTF8 = "utf-8"
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark is a prefix of it
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def require_file(field: str, path: Path, expected: str) -> None:
    """Raise ConfigurationError if the file does not exist."""
    if not path.is_file():
        raise ConfigurationError(f"data.{field}: no such file: {path}; expected {expected}")


def require_folder(field: str, path: Path, expected: str) -> None:
    """Raise ConfigurationError if the folder does not exist."""
    if not path.is_dir():
        raise ConfigurationError(f"data.{field}: no such folder: {path}; expected {expected}")


def read_bytes(path: Path) -> bytes:
    """Read a file.

    Raises:
        ConfigurationError: the file can't be read.
    """
    try:
        return read_regular(path)
    except OSError as error:
        raise ConfigurationError(f"{path}: can't be read: {error.strerror}") from error


def check_encoding(encoding: str) -> None:
    """Raise ConfigurationError if Python has no text encoding of this name."""
    try:
        "".encode(encoding)
    except (LookupError, ValueError) as error:
        raise ConfigurationError(
            f"data.encoding: expected the name of an encoding, such as gbk, shift_jis or cp1252, got {encoding!r}"
        ) from error


def decode_text(data: bytes, encoding: str = UTF8) -> str:
    r"""Decode text as its byte order mark says, or else with `encoding`.

    Raises:
        ValueError: the text has another encoding; the message names the line.

    >>> decode_text("ok\nStra\u00dfe".encode("cp1252"))
    Traceback (most recent call last):
    ...
    ValueError: line 2: byte 0xdf is not utf-8; data.encoding sets another encoding, such as gbk, shift_jis or cp1252
    """
    marked = next((name for mark, name in BYTE_ORDER_MARKS.items() if data.startswith(mark)), encoding)
    try:
        return data.decode(marked)
    except UnicodeDecodeError as error:
        line, byte = data.count(b"\n", 0, error.start) + 1, data[error.start]
        raise ValueError(
            f"line {line}: byte 0x{byte:02x} is not {marked}; data.encoding sets another encoding, such as gbk, "
            "shift_jis or cp1252"
        ) from error


def read_text(path: Path, encoding: str = UTF8) -> str:
    """Read a text file.

    Raises:
        ConfigurationError: the file can't be read, or is not text in `encoding`.
    """
    try:
        return decode_text(read_bytes(path), encoding)
    except ValueError as error:
        raise ConfigurationError(f"{path}: {error}") from error


def split_lines(text: str) -> list[str]:
    """Split text at the line ends of any system, but not at U+2028 and the like, which may be part of a name."""
    return re.split(r"\r\n?|\n", text)


def endings(path: str) -> list[str]:
    r"""Return the endings of a POSIX or Windows path, longest first, without `..`, `.` and the root.

    >>> endings("C:\\set\\train")
    ['set/train', 'train']
    """
    parts = [part for part in re.split(r"[/\\]", path) if part not in ("", ".", "..") and not part.endswith(":")]
    return ["/".join(parts[i:]) for i in range(len(parts))]


def read_lines(path: Path, encoding: str = UTF8) -> Iterator[tuple[str, str]]:
    """Yield the location and the stripped text of each line that is not empty.

    Raises:
        ConfigurationError: the file is not text.
    """
    for number, line in enumerate(split_lines(read_text(path, encoding)), 1):
        if line.strip():
            yield f"{path}: line {number}", line.strip()


def decode_json(text: str | bytes, encoding: str = UTF8) -> Any:
    """Decode JSON.

    Raises:
        ValueError: the text is invalid or nested too deeply, or an object has a key twice.

    >>> decode_json('{"a.jpg": [1, 2], "a.jpg": []}')
    Traceback (most recent call last):
    ...
    ValueError: an object has the key 'a.jpg' twice
    """
    try:
        content = text if isinstance(text, str) else decode_text(text, encoding)
        return json.loads(content, object_pairs_hook=_object)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        repeated = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise ValueError(f"an object has the key {brief(repeated)} twice")
    return found


def read_xml(path: Path, encoding: str = UTF8) -> Element:
    """Read XML in the encoding that it declares, unless `encoding` is another one than UTF-8.

    Raises:
        ConfigurationError: the file can't be read.
        ValueError: the file is not XML.
    """
    data = read_bytes(path)
    declared = declared_encoding(data) if encoding == UTF8 else None
    try:
        return decode_xml(decode_text(data, declared or encoding))
    except LookupError as error:
        raise ValueError(f"unknown encoding {declared!r}") from error


def is_text(value: Any) -> TypeGuard[str]:
    """Return whether a value is a string that is not blank and can be encoded as UTF-8."""
    return isinstance(value, str) and bool(value.strip()) and LONE_SURROGATE.search(value) is None


def is_file_name(value: Any) -> TypeGuard[str]:
    """Return whether a value is text that can name a file."""
    return is_text(value) and "\0" not in value


def is_id(value: Any) -> TypeGuard[int]:
    """Return whether a value is an integer, not a boolean."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Return whether a value is a number of magnitude below MAX_COORDINATE; booleans, NaN and infinities are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MAX_COORDINATE


def size_of(width: Any, height: Any) -> tuple[int, int] | None:
    """Return an annotated size, which may be text, or None if it is missing (null, empty or 0).

    Raises:
        ValueError: the size is not two positive integers.
    """
    if width in (None, "", 0, "0") and height in (None, "", 0, "0"):
        return None
    said = f"expected width and height as whole numbers, got {brief(width)} and {brief(height)}"
    try:
        found = float(width), float(height)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(said) from error
    if not all(side.is_integer() and 0 < side < MAX_COORDINATE for side in found):
        raise ValueError(said)
    return int(found[0]), int(found[1])


def read_number(text: str) -> float:
    """Convert text to a number. Raise ValueError if it is not a number; unlike `float`, refuse underscores (1_000)."""
    if "_" in text:
        raise ValueError(f"could not convert string to float: {text!r}")
    return float(text)


def require_object(value: Any, name: str) -> dict[str, Any]:
    """Return the value if it is a JSON object. Raise ValueError otherwise."""
    if not isinstance(value, dict):
        raise ValueError(f"{name}: expected an object, got {brief(value)}")
    return value


MAX_REASONS = 10
"""Maximum number of bad objects of an image that a message lists."""

Item = TypeVar("Item")
Found = TypeVar("Found")


def brief(value: Any) -> str:
    """Format a value for a message, cut to one line; containers appear as their type unless short and flat."""
    if isinstance(value, int) and value.bit_length() > 64:
        return "a very large number"
    if isinstance(value, list) and len(value) <= 8 and not any(isinstance(entry, list | dict) for entry in value):
        return f"[{', '.join(map(brief, value))}]"
    text = repr(value) if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


def points_of(value: Any, least: int = 2) -> list[tuple[float, float]]:
    """Return points of the form [[x, y], ...]. Raise ValueError if they are invalid, or fewer than `least`."""
    if not isinstance(value, list) or not all(isinstance(point, list) and len(point) == 2 for point in value):
        raise ValueError(f"points: expected [[x, y], ...], got {brief(value)}")
    if not all(is_number(number) for point in value for number in point):
        raise ValueError("points: expected finite numbers")
    if len(value) < least:
        raise ValueError(f"points: expected at least {least}, got {len(value)}")
    return [(float(x), float(y)) for x, y in value]


def hull(points: Iterable[tuple[float, float]]) -> tuple[float, float, float, float]:
    """Return the smallest box around points. Raise ValueError if a number is infinite or NaN."""
    xs, ys = zip(*points, strict=True)
    if not all(map(math.isfinite, (*xs, *ys))):  # min and max may ignore NaN
        raise ValueError("points: expected finite numbers")
    return min(xs), min(ys), max(xs), max(ys)


def read_all(items: Iterable[Item], read: Callable[[int, Item], Found]) -> list[Found]:
    """Return `read(position, item)` of each item. Raise one ValueError with the reasons of all invalid items."""
    found, reasons = [], []
    for i, item in enumerate(items):
        try:
            found.append(read(i, item))
        except ValueError as error:
            reasons.append(str(error))
    if len(reasons) > MAX_REASONS:
        reasons[MAX_REASONS:] = [f"and {len(reasons) - MAX_REASONS} more"]
    if reasons:
        raise ValueError("; ".join(reasons))
    return found


def refuse_fractions(source: object, boxes: Iterable[Sequence[float]], unit: str = "pixels") -> None:
    """Raise ConfigurationError if all corners look like fractions of the image, although `unit` is expected."""
    numbers = {number for box in boxes for number in box}
    largest = max(numbers, default=None)
    if largest is not None and largest <= 1 and any(0 < number < 1 for number in numbers):
        raise ConfigurationError(
            f"{source}: no coordinate is above {largest:g}; expected {unit}, not fractions of the image"
        )


def clip_to(box: tuple[float, float, float, float], width: float, height: float) -> tuple[float, float, float, float]:
    """Clip a box to an image. The result has no area if the box lies outside."""
    x0, y0, x1, y1 = box
    return max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))
