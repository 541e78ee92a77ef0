"""Decoding of untrusted YAML."""

from __future__ import annotations

from typing import Any

import yaml


def decode_yaml(text: str, *, as_text: bool = False) -> Any:
    """Decode YAML to plain values only, or with `as_text` to strings instead of numbers, booleans and dates.

    Raises:
        ValueError: the text is not valid YAML.

    >>> decode_yaml("made: 2026-99-99")
    Traceback (most recent call last):
    ...
    ValueError: month must be in 1..12
    """
    try:
        return yaml.load(text, yaml.BaseLoader) if as_text else yaml.safe_load(text)
    except ValueError:
        raise
    except (yaml.YAMLError, LookupError, ArithmeticError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(str(error)) from error  # a YAML error, or one of a tag's constructor
