"""Parse untrusted JSON or Python literals, with a reason if a text can't be parsed.

A Python literal is translated to JSON token by token, without evaluation and in linear time.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

_TOKEN = re.compile(
    r"""\s+|[][{}(),:]|-?[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?|"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'"""
)
_ESCAPE = re.compile(r'\\.|"')
MAX_EXCERPT = 20
MAX_DEPTH = 100
"""Maximum depth of nested brackets; an answer needs three."""

DEEP = "its brackets are nested too deeply"

UNFINISHED = "it ends before the list is closed"


class Unreadable(ValueError):
    """Raised if an answer can't be read. The message is the reason."""


class _Token(NamedTuple):
    """A token, translated to JSON, with its position in the text."""

    json: str
    start: int


def read_literal(text: str, offset: int = 0) -> Any:
    """Return the value of JSON or of a Python literal of lists, tuples, dicts, strings and numbers.

    Args:
        text: the literal.
        offset: position of the text's first character, for messages.

    Raises:
        Unreadable: the text is neither. The message has the position, counted from 1.
    """
    tokens, position = [], 0
    while found := _TOKEN.match(text, position):
        if not found.group().isspace():
            tokens.append(_Token(found.group(), position))
        position = found.end()
    if not tokens:
        raise Unreadable(f"expected a list of boxes, got {excerpt(text) or 'nothing'}")
    if position != len(text):
        what = "a text that isn't closed," if text[position] in "'\"" else "unexpected"
        raise Unreadable(f"{what} {excerpt(text, position)} at character {position + offset + 1}")
    _match_brackets(tokens, offset)
    tokens = [_Token(_as_json(token.json), token.start) for token in tokens]
    before, after = [_Token("", 0), *tokens], [*tokens[1:], _Token("", 0)]
    triples = zip(before, tokens, after, strict=False)
    kept = [b for a, b, c in triples if b.json != "," or c.json not in ("]", "}") or a.json in ("[", "{")]  # `[1,]`
    translated = " ".join(token.json for token in kept)
    try:
        return json.loads(translated, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        if error.pos >= len(translated):
            raise Unreadable(UNFINISHED) from error
        starts = [0, *accumulate(len(token.json) + 1 for token in kept)]
        place = kept[bisect_right(starts, error.pos) - 1].start
        problem = error.msg[:1].lower() + error.msg[1:]
        raise Unreadable(f"{problem} at character {place + offset + 1}, at {excerpt(text, place)}") from error
    except RecursionError as error:
        raise Unreadable(DEEP) from error
    except Unreadable:
        raise
    except ValueError as error:
        raise Unreadable("a number has too many digits") from error


def excerpt(text: str, start: int = 0) -> str:
    """Return a quoted excerpt of a text from a position on, without line breaks."""
    shown = " ".join(text[start : start + MAX_EXCERPT].split())
    return shown and repr(f"{shown}…" if len(text) - start > MAX_EXCERPT else shown)


def _match_brackets(tokens: Sequence[_Token], offset: int) -> None:
    """Raise Unreadable unless each `(` and `[` is closed by a matching bracket. The JSON parser checks the rest.

    Also limit the depth, because the JSON parser's limit depends on the version of Python.
    """
    opened, depth = [], 0
    for token, start in tokens:
        depth += (token in "([{") - (token in ")]}")
        if depth > MAX_DEPTH:
            raise Unreadable(DEEP)
        if token in ("(", "["):
            opened.append(token)
        elif token in (")", "]") and (not opened or opened.pop() + token not in ("()", "[]")):
            if offset and start == tokens[-1].start:  # the bracket that `read_boxes` added
                raise Unreadable(UNFINISHED)
            raise Unreadable(f"{token!r} at character {start + offset + 1} closes no bracket of its kind")


def _as_json(token: str) -> str:
    if token[0] == "'":
        return f'"{_ESCAPE.sub(_requote, token[1:-1])}"'
    return {"(": "[", ")": "]"}.get(token, token)


def _requote(found: re.Match[str]) -> str:
    return {"\\'": "'", '"': '\\"'}.get(found.group(), found.group())


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise Unreadable(f"the key {excerpt(twice)} appears twice in an object")
    return dict(pairs)
