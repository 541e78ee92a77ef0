"""Texts are UTF-8 on every system: no call reads or writes one in the encoding of the locale."""

from __future__ import annotations

import ast

import pytest

from tests.helpers import ROOT

TEXT = ("read_text", "write_text")
OPENERS = ("Image", "os", "webbrowser")
"""Modules with an `open` that opens no text."""


def without_encoding(tree: ast.AST) -> list[int]:
    """Return the lines of calls that open a text file in the locale's encoding."""
    return [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Call) and _is_vague(node)]


def _is_vague(call: ast.Call) -> bool:
    name, owner = "", ""
    if isinstance(call.func, ast.Attribute):
        name, owner = call.func.attr, ast.unparse(call.func.value)
    elif isinstance(call.func, ast.Name):
        name = call.func.id
    given = {keyword.arg for keyword in call.keywords}
    if name in TEXT and owner:
        return "encoding" not in given
    if name not in ("open", "fdopen") or (name == "open" and owner in OPENERS):
        return False
    words = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
    modes = [word.value for word in words if isinstance(word, ast.Constant) and isinstance(word.value, str)]
    return "encoding" not in given and not any("b" in mode for mode in modes)


@pytest.mark.parametrize(
    ("code", "vague"),
    [
        ("path.read_text()", True),
        ("path.read_text(encoding='utf-8')", False),
        ("path.write_text('x')", True),
        ("path.write_text('x', encoding='utf-8')", False),
        ("open(path)", True),
        ("open(path, 'rb')", False),
        ("path.open()", True),
        ("path.open('w', newline='')", True),
        ("path.open(mode='ab')", False),
        ("os.fdopen(1, 'w')", True),
        ("os.open(path, flags)", False),
        ("Image.open(path)", False),
        ("read_text(path, problems)", False),
    ],
)
def test_the_check_finds_texts_alone(code: str, vague: bool) -> None:
    assert bool(without_encoding(ast.parse(code))) is vague


def test_texts_are_utf8_whatever_the_locale() -> None:
    found = {path: without_encoding(ast.parse(path.read_text("utf-8"))) for path in (ROOT / "vrft").rglob("*.py")}
    assert {str(path): lines for path, lines in found.items() if lines} == {}
