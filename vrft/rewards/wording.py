"""Questions to models, as texts with placeholders."""

from __future__ import annotations

import re
from collections.abc import Mapping


def filled(template: str, values: Mapping[str, str]) -> str:
    """Replace {name} by the value of each name, in one pass: a value that has braces stays as it is.

    >>> filled("{a} {b} {c}", {"a": "{b}", "b": "2"})
    '{b} 2 {c}'
    """
    names = "|".join(map(re.escape, values))
    return re.sub(rf"\{{({names})\}}", lambda match: values[match[1]], template)
