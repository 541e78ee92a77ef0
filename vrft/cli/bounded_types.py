"""Restrict numbers in configs to finite values within the bounds of their field's type."""

from __future__ import annotations

import inspect
import math
from functools import reduce
from operator import or_
from types import UnionType
from typing import Any, Union, get_args, get_origin

from jsonargparse.typing import get_registered_type, register_type

from vrft.utils.bounds import Finite, Number


def bound_numbers(hint: Any, default: Any) -> Any:
    """Replace `float` in the type of a parameter by `Finite`, and make the parser check all bounds.

    Keep a `float` whose default is infinite, and unions with `int`, `str` or `bool`, because the type of their values
    depends on how they are written.
    """
    if hint is float:
        return hint if isinstance(default, float) and not math.isfinite(default) else registered(Finite)
    if inspect.isclass(hint) and issubclass(hint, Number):
        return registered(hint)
    members = get_args(hint)
    if get_origin(hint) in (Union, UnionType) and not {int, str, bool} & {*members}:
        return reduce(or_, (bound_numbers(member, default) for member in members))
    return hint


def registered(kind: type[Number]) -> type[Number]:
    """Register a type of numbers with jsonargparse, and return it."""

    def read(value: object) -> float:
        number = _number(value, kind.base)
        if number is None or not kind.lowest <= number <= kind.highest:
            raise ValueError(f"expected {kind.expected()}, got {value}")
        return number

    def has_type(value: object, _: type) -> bool:
        return type(value) is kind.base and _number(value, kind.base) is not None and read(value) == value

    if get_registered_type(kind) is None:
        register_type(kind, serializer=kind.base, deserializer=read, type_check=has_type)
    return kind


def _number(value: object, base: type[int] | type[float]) -> float | None:
    """Return a value as a finite number, or None if it isn't one."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = base(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and (isinstance(value, str) or number == value) else None
