"""Checks of values in a checkpoint's settings that transformers itself doesn't check."""

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
"""Fields of an image processor that hold numbers, alone or in lists and objects."""

LEAST = {"image_mean": -math.inf, "min_pixels": 0, "min_patches": 0}
"""Smallest value of numbers that need not be positive."""


def stored_problem(file: str, content: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the values in a checkpoint's JSON file, if anything. `file`: its name."""
    if file == "generation_config.json":
        return stop_problem(content)
    settings = content.get("image_processor") if file == "processor_config.json" else content
    if file not in ("preprocessor_config.json", "processor_config.json") or not isinstance(settings, dict):
        return None
    return image_problem(settings)


def image_problem(settings: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the settings of an image processor, if anything.

    Text in place of a number fails at the first image, and `"no"` in place of false means true.
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
    """Return what is wrong with the tokens that end an answer in a generation_config.json, if anything."""
    given = settings.get("eos_token_id")
    ids = given if isinstance(given, list) else [given]
    if all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids if i is not None):
        return None
    return f"has eos_token_id={given!r}; expected the id of a token or a list of ids"


def leaves(value: object, place: str) -> Iterator[tuple[str, Any]]:
    """Yield the values in nested lists and objects with their places; null is no value."""
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
