"""What readers of several formats share: paths that have to be there, text, JSON, and values in messages."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeGuard

from vrft.errors import ConfigurationError

LARGEST = 1e9
"""No coordinate is larger."""


def require_file(field: str, path: Path, expected: str) -> None:
    """Raise ConfigurationError if there is no such file."""
    if not path.is_file():
        raise ConfigurationError(f"data.{field}: no such file: {path}; expected {expected}")


def require_folder(field: str, path: Path, expected: str) -> None:
    """Raise ConfigurationError if there is no such folder."""
    if not path.is_dir():
        raise ConfigurationError(f"data.{field}: no such folder: {path}; expected {expected}")


def read_bytes(path: Path) -> bytes:
    """The content of a file.

    Raises:
        ConfigurationError: it can't be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{path}: can't be read: {error.strerror}") from error


def decode_text(data: bytes) -> str:
    """UTF-8, or else Windows's Western European letters. Raises ValueError if it is neither."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252")


def read_text(path: Path) -> str:
    """The content of a text file.

    Raises:
        ConfigurationError: it can't be read, or is not text.
    """
    try:
        return decode_text(read_bytes(path))
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: not a text file: {error}") from error


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Where each line that is not empty stands, and the line without white space around it.

    Raises:
        ConfigurationError: the file is not text.
    """
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            yield f"{path}: line {number}", line.strip()


def decode_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError if it is none."""
    try:
        return json.loads(text if isinstance(text, str) else decode_text(text))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def is_text(value: Any) -> TypeGuard[str]:
    """A string with more than white space in it, which can be written to a file."""
    return isinstance(value, str) and bool(value.strip()) and not any("\ud800" <= c <= "\udfff" for c in value)


def is_file_name(value: Any) -> TypeGuard[str]:
    """Text that can name a file."""
    return is_text(value) and "\0" not in value


def is_id(value: Any) -> TypeGuard[int]:
    """An integer that is no boolean."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """A number of a size that occurs; no boolean, NaN or infinity."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST


def brief(value: Any) -> str:
    """A value in a message, cut to a line; of lists and the like only the kind, unless they are short and flat."""
    if isinstance(value, int) and value.bit_length() > 64:
        return "a very large number"
    if isinstance(value, list) and len(value) <= 8 and not any(isinstance(entry, list | dict) for entry in value):
        return f"[{', '.join(map(brief, value))}]"
    text = repr(value) if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


def hull(points: Iterable[tuple[float, float]]) -> tuple[float, float, float, float]:
    """The smallest box around points."""
    xs, ys = zip(*points, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def clip_to(box: tuple[float, float, float, float], width: float, height: float) -> tuple[float, float, float, float]:
    """The part of a box inside an image; without area if there is none."""
    x0, y0, x1, y1 = box
    return max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))
