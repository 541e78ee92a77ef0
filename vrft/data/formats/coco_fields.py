"""Read ids, flags and areas of COCO and LVIS entries in all forms that occur in files."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, TypeGuard

from vrft.data.files import brief, is_text
from vrft.types import Id

FLAGS: dict[Any, int] = {0: 0, 1: 1, "0": 0, "1": 1, None: 0}
"""Accepted values of a flag. Booleans and floats equal to a key match it too."""


def is_json_id(value: Any) -> TypeGuard[Id]:
    """Return whether a value is an id: an integer, possibly written as 1.0, or a string."""
    if isinstance(value, float):
        return value.is_integer()
    return is_text(value) or (isinstance(value, int) and not isinstance(value, bool))


def id_order(value: Id) -> tuple[bool, Id]:
    """Return the sort key of an id: numbers by value, then strings."""
    return isinstance(value, str), value


def read_flag(value: Any) -> int:
    """Return `iscrowd` or `ignore` as 0 or 1; null is 0. Raise ValueError for any other value.

    >>> read_flag("0"), read_flag(True), read_flag(None)
    (0, 1, 0)
    """
    if isinstance(value, list | dict) or value not in FLAGS:
        raise ValueError(f"expected 0 or 1, got {brief(value)}")
    return FLAGS[value]


def read_area(value: Any) -> float | None:
    """Return an area, or None for null. Raise ValueError for anything but a finite number of at least 0."""
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= sys.float_info.max:
        raise ValueError(f"expected a finite number of at least 0, got {brief(value)}")
    return float(value)


def values_reason(entry: Mapping[str, Any]) -> str | None:
    """Return why `iscrowd`, `ignore` or `area` of an annotation is invalid, or None."""
    for key in ("iscrowd", "ignore"):
        try:
            read_flag(entry.get(key))
        except ValueError as error:
            return f"{key}: {error}"
    try:
        read_area(entry.get("area"))
    except ValueError as error:
        return f"area: {error}"
    return None
