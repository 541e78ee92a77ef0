"""Escape text of users, files and models for display in a terminal, a log or a table."""

from __future__ import annotations

import math
import re
import shlex
import subprocess
import sys

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""First characters of cells that a spreadsheet would evaluate."""

INVISIBLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u2028-\u202e"
    r"\u2060-\u206f\u3164\ud800-\udfff\ufeff\uffa0\ufff9-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    r"\U000e0000-\U000e0fff]"
)
"""Control characters but tab and newline, direction marks, invisible letters and spaces, tags and lone surrogates.

The joiners of emoji and of Persian and Indic scripts, U+200C and U+200D, and U+FE0F are shown as they are.
"""


LONE_SURROGATE = re.compile(r"[\ud800-\udfff]")
"""Lone surrogates, from JSON escapes or file names that aren't UTF-8. UTF-8 files can't contain them."""


def visible(text: str) -> str:
    r"""Escape characters that control a terminal or are misleading to a reader.

    >>> print(visible("\x1b[31mred\u202e"))
    \x1b[31mred\u202e
    """
    return INVISIBLE.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def counted(count: int, noun: str) -> str:
    """Return a number followed by a noun in the singular or plural.

    >>> counted(1, "image"), counted(2, "image"), counted(0, "class"), counted(2, "bad entry"), counted(3, "box")
    ('1 image', '2 images', '0 classes', '2 bad entries', '3 boxes')
    """
    return f"{count} {noun if count == 1 else plural(noun)}"


def plural(noun: str) -> str:
    """Return the plural of a noun that forms it regularly."""
    if noun.endswith("y"):
        return f"{noun[:-1]}ies"
    return f"{noun}es" if noun.endswith(("s", "x", "ch")) else f"{noun}s"


def shell_word(text: str) -> str:
    """Quote a word for the shell of this system."""
    return subprocess.list2cmdline([text]) if sys.platform == "win32" else shlex.quote(text)


def table_cell(text: str) -> str:
    """Return a text as one line for a CSV cell that spreadsheets don't evaluate.

    >>> table_cell("=HYPERLINK(1)")
    "'=HYPERLINK(1)"
    """
    line = visible(" ".join(text.split()))
    return f"'{line}" if line.startswith(FORMULA) else line


def decimals(*values: float) -> int:
    """Return the number of decimals for scores of one row: three, or more if all of them are small.

    >>> decimals(0.41), decimals(0.0038, 0.0), decimals(0.00076), decimals(0.0)
    (3, 4, 5, 3)
    """
    largest = max(map(abs, values))
    return 3 if not largest or not math.isfinite(largest) else min(max(3, 1 - math.floor(math.log10(largest))), 6)


def score_cells(before: float, after: float) -> tuple[str, str, str]:
    """Format a score before and after training, and the change.

    >>> score_cells(0.0038, 0.0)
    ('0.0038', '0.0000', '-0.0038')
    """
    places = decimals(before, after)
    return f"{before:.{places}f}", f"{after:.{places}f}", f"{round(after - before, places) + 0.0:+.{places}f}"
