"""Deduplicate the prompts of a report and truncate long texts."""

from __future__ import annotations

MAX_CHARACTERS = 30_000_000
"""Maximum number of characters of all completions of a report; above it, completions are truncated."""

MIN_LIMIT = 2_000
"""Minimum number of characters to which a completion is truncated."""

MAX_PROMPT = 20_000


class Prompts:
    """Collects the prompts of a page, each once."""

    def __init__(self) -> None:
        self.positions: dict[str, int] = {}

    def position(self, text: str | None) -> int | None:
        """Return the index of a text in `texts`, adding it if it is new; None for None."""
        return None if text is None else self.positions.setdefault(cut(text, MAX_PROMPT), len(self.positions))

    @property
    def texts(self) -> list[str]:
        """The different texts."""
        return [*self.positions]


def limit(texts: int) -> int:
    """Return the maximum number of characters of each completion on a page with `texts` completions."""
    return max(MIN_LIMIT, MAX_CHARACTERS // max(texts, 1))


def cut(text: str, most: int) -> str:
    """Truncate a text to `most` characters, followed by the number of omitted ones.

    >>> cut("abcdef", 4)
    'abcd … (2 characters more)'
    """
    return text if len(text) <= most else f"{text[:most]} … ({len(text) - most:,} characters more)"
