"""Text of users, files and models as it is shown: in a terminal, a log or a table."""

from __future__ import annotations

import re

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""First characters of a cell that a spreadsheet would compute."""

INVISIBLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028\u2029\u202a-\u202e\u2060-\u2069\ufeff\ud800-\udfff"
    r"\U000e0000-\U000e007f]"
)
"""Control characters but tab and newline, direction marks, zero-width spaces, tags and lone surrogates."""


def visible(text: str) -> str:
    r"""Replace characters that a terminal would obey, or that change what a reader sees, by their escapes.

    >>> print(visible("\x1b[31mred\u202e"))
    \x1b[31mred\u202e
    """
    return INVISIBLE.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def table_cell(text: str) -> str:
    """Return a text as one line of a CSV cell that no spreadsheet computes.

    >>> table_cell("=HYPERLINK(1)")
    "'=HYPERLINK(1)"
    """
    line = visible(" ".join(text.split()))
    return f"'{line}" if line.startswith(FORMULA) else line
