"""Hypothesis strategies that break valid texts and files."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

WORDS = [
    *("<think>", "</think>", "<answer>", "</answer>", "<answer", "{", "}", "[", "]", "(", ")", '"', "'", ",", ":"),
    *("'Position': ", "'Confidence': ", '"bbox_2d": ', '"label": ', "null", "None", "true", "No Objects", "```json"),
    *("nan", "NaN", "inf", "-Infinity", "1e999", "-1", "0", "-0.0", "1e-320", "9" * 400, "0x10", "1_000", "٣", "½"),
    *("\0", "\ufeff", "\u2028", "\U0001f984", "\ud800", "__import__('os')", "<script>", "../", "%s", "\r\n", " " * 50),
]
VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**70, 0.5, -0.0, 1e308, math.nan, math.inf, -math.inf, {"a": 1}, {}),
    *("", "x", "a" * 3000, "\0", "../../x", "nan", "1", "\U0001f984", [], [[]], [1, 2, 3, 4], [None] * 9),
]


def once_in(n: int) -> st.SearchStrategy[bool]:
    """Draw True once in n times."""
    return st.integers(0, n - 1).map(lambda k: k == n - 1)


@st.composite
def broken_text(draw: DrawFn, content: bytes) -> bytes:
    """Cut, repeat, insert and change a few parts of a text."""
    text = content.decode("utf-8", "surrogateescape")
    for _ in range(draw(st.sampled_from((1, 1, 2, 4, 9)))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.sampled_from((0, 1, 3, 20))))
        kind = draw(st.sampled_from(("word", "word", "cut", "repeat", "character", "nested")))
        if kind == "word":
            middle = draw(st.sampled_from(WORDS))
        elif kind == "cut":
            middle = ""
        elif kind == "repeat":
            middle = text[start:end] * (1 + draw(st.sampled_from((1, 2, 200))))
        elif kind == "character":
            middle = chr(draw(st.one_of(st.integers(32, 126), st.integers(0, 0xD7FE))))
        else:
            opening = draw(st.sampled_from(("[", "{", "(", "<answer>", "'", "9")))
            middle = opening * draw(st.sampled_from((50, 5000)))
        text = text[:start] + middle + text[end:]
    return text.encode("utf-8", "surrogatepass" if draw(once_in(10)) else "replace")


@st.composite
def broken_bytes(draw: DrawFn, content: bytes) -> bytes:
    """Change, lose or repeat a few bytes."""
    data = content
    for _ in range(draw(st.sampled_from((1, 2, 8)))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.sampled_from((0, 1, 4, 100))))
        drawn = st.sampled_from((b"", data[start:end] * 3, b"\xff", b"\0" * 9, b"I9\n"))
        data = data[:start] + draw(drawn | st.binary(min_size=3, max_size=3)) + data[end:]
    return data[: draw(st.integers(0, len(data)))] if draw(once_in(10)) else data


@st.composite
def broken_json(draw: DrawFn, content: bytes) -> bytes:
    """Replace, remove or double fields; sometimes nest one deeply or break the text as well."""
    values = [json.loads(content)]
    for _ in range(draw(st.sampled_from((1, 1, 2, 5)))):
        if values:
            change(draw, values)
    broken = "".join(map(json.dumps, values)).encode()
    if draw(once_in(50)):
        broken = broken.replace(b"1", b"[" * 20_000, 1)
    return draw(broken_text(broken)) if draw(once_in(5)) else broken


@st.composite
def broken_lines(draw: DrawFn, content: bytes) -> bytes:
    """Break one line of a file of JSON lines."""
    lines = content.splitlines()
    chosen = draw(st.integers(0, len(lines) - 1))
    lines[chosen] = draw(broken_json(lines[chosen]))
    return b"\n".join(lines) + b"\n"


def change(draw: DrawFn, values: list[Any]) -> None:
    """Replace, remove or double one of some values or a part of it, at any depth."""
    places = list(places_in(values))
    container, key = places[draw(st.integers(0, len(places) - 1))]
    kind = draw(st.sampled_from(("replace",) * 4 + ("double", "remove")))
    if kind == "replace":
        container[key] = copy.deepcopy(draw(st.sampled_from(VALUES)))
    elif kind == "double" and isinstance(container, list):
        container.insert(key, container[key])
    else:
        del container[key]


def places_in(container: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the places of all parts: a list with an index, or a dict with a key."""
    for key, value in container.items() if isinstance(container, dict) else enumerate(container):
        yield container, key
        if isinstance(value, dict | list):
            yield from places_in(value)
