"""YAML that others wrote."""

from __future__ import annotations

from typing import Any

import yaml


def decode_yaml(text: str, *, as_text: bool = False) -> Any:
    """The value of a YAML text; tags make nothing but plain values, and with `as_text` all of them are text.

    Raises:
        ValueError: it is none.

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
        raise ValueError(str(error)) from error  # of the YAML, or what a tag's own reader stumbled over
