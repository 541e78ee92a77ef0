"""Every message that the troubleshooting page quotes is one of the package's."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest

from tests.helpers import ROOT

PAGE = ROOT / "docs" / "troubleshooting.md"
ANYTHING = "\0"


def text_of(node: ast.AST) -> str:
    """Return the text of an expression, with ANYTHING in the place of values."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(value) for value in node.values)
    return ANYTHING


@cache
def texts() -> set[str]:
    """Return the texts in the package's code."""
    nodes = [node for path in (ROOT / "vrft").rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))]
    return {text for node in nodes if len(text := text_of(node)) > 8}


def quoted() -> list[str]:
    """Return the messages in the first column of the page's tables."""
    own = PAGE.read_text().partition("## Messages of other packages")[0]
    return re.findall(r"^\| `([^`]+)` \|", own, re.M)


def parts(message: str) -> list[str]:
    """Return the pieces of a message between the values that differ, without pieces of one or two characters."""
    return [part for piece in message.split("…") if len(part := piece.strip()) > 2]


def is_in(message: str, text: str) -> bool:
    """Return whether a text has the pieces of a message in their order."""
    end = 0
    for part in parts(message):
        start = text.find(part, end)
        if start < 0:
            return False
        end = start + len(part)
    return True


def test_quoted_messages_exist() -> None:
    messages = quoted()
    assert len(messages) > 40
    missing = [message for message in messages if not any(is_in(message, text) for text in texts())]
    assert missing == []


@pytest.mark.parametrize("message", ["a message that … nobody writes", "out of memory; from there on …"])
def test_other_messages_do_not_exist(message: str) -> None:
    assert not any(is_in(message, text) for text in texts())
