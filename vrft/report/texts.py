"""Texts of the page: prompts once each, and long texts cut."""

from __future__ import annotations

MAX_CHARACTERS = 30_000_000
"""Characters of all completions of a report together, before they are cut."""

MIN_LIMIT = 2_000
"""Characters of each completion that are shown in any case."""

MAX_PROMPT = 20_000


class Prompts:
    """Collects the prompts of a page, of which many are equal."""

    def __init__(self) -> None:
        self.positions: dict[str, int] = {}

    def position(self, text: str | None) -> int | None:
        """Return the position of a text among `texts`; None for None."""
        return None if text is None else self.positions.setdefault(cut(text, MAX_PROMPT), len(self.positions))

    @property
    def texts(self) -> list[str]:
        """The different texts."""
        return [*self.positions]


def limit(texts: int) -> int:
    """Return the number of characters that a page shows of each of a number of texts."""
    return max(MIN_LIMIT, MAX_CHARACTERS // max(texts, 1))


def cut(text: str, most: int) -> str:
    """Return a text, or its beginning and how much is left out.

    >>> cut("abcdef", 4)
    'abcd … (2 characters more)'
    """
    return text if len(text) <= most else f"{text[:most]} … ({len(text) - most:,} characters more)"
