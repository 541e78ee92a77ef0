"""Links of pages outside of docs/, which is the root of the site."""

from __future__ import annotations

import re


def relocate(markdown: str, *, inside: bool) -> str:
    """Point links between docs/ and the rest of the repository at the pages of the site.

    Args:
        markdown: the text of a page.
        inside: whether the page lies in docs/.

    >>> relocate("[a](../SECURITY.md)", inside=True)
    '[a](SECURITY.md)'
    >>> relocate("[a](../../docs/evaluation.md#rewards)", inside=False)
    '[a](../../evaluation.md#rewards)'
    """
    if inside:
        return re.sub(r"\]\(\.\./", "](", markdown)
    return re.sub(r"\]\(((?:\.\./)*)docs/", r"](\1", markdown)
