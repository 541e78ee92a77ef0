"""Check values in a checkpoint's settings that transformers does not check."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from typing import Any

NUMBERS = (
    *("size", "crop_size", "max_image_size", "image_grid_pinpoints", "min_pixels", "max_pixels"),
    *("patch_size", "merge_size", "temporal_patch_size", "min_patches", "max_patches"),
    *("rescale_factor", "image_mean", "image_std"),
)
"""Fields of an image processor with numbers, single or in lists and objects."""

LEAST = {"image_mean": -math.inf, "min_pixels": 0, "min_patches": 0}
"""Minimum values of numbers that need not be positive."""


def stored_problem(file: str, content: Mapping[str, Any]) -> str | None:
    """Return the problem of the values in a checkpoint's JSON file, or None. `file` is the name of the file."""
    if file == "generation_config.json":
        return stop_problem(content)
    settings = content.get("image_processor") if file == "processor_config.json" else content
    if file not in ("preprocessor_config.json", "processor_config.json") or not isinstance(settings, dict):
        return None
    return image_problem(settings)


def image_problem(settings: Mapping[str, Any]) -> str | None:
    """Return the problem of the settings of an image processor, or None.

    A string instead of a number would fail at the first image, and `"no"` instead of false would mean true.
    """
    for name, value in settings.items():
        if name.startswith("do_") and value not in (None, True, False):
            return f"has {name}={value!r}; expected true or false"
    for name in NUMBERS:
        least = LEAST.get(name, sys.float_info.min)
        for place, value in leaves(settings.get(name), name):
            if not is_number(value) or value < least:
                return f"has {place}={value!r}; expected a positive number"
    return None


def stop_problem(settings: Mapping[str, Any]) -> str | None:
    """Return the problem of the stop tokens in a generation_config.json, or None."""
    given = settings.get("eos_token_id")
    ids = given if isinstance(given, list) else [given]
    if all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids if i is not None):
        return None
    return f"has eos_token_id={given!r}; expected the id of a token or a list of ids"


def leaves(value: object, place: str) -> Iterator[tuple[str, Any]]:
    """Yield the place and the value of each leaf in nested lists and objects, except null."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from leaves(part, f"{place}.{key}")
    elif isinstance(value, list):
        for i, part in enumerate(value):
            yield from leaves(part, f"{place}[{i}]")
    elif value is not None:
        yield place, value


def is_number(value: object) -> bool:
    """Return whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
