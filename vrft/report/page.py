"""One HTML file with all that it needs: style, script, data and pictures."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

SCRIPTS = ("dom.js", "charts.js", "pictures.js", "rollouts.js", "report.js")

NAME = re.compile(r"[0-9a-f]{16}\.jpg")
JPEG = b"\xff\xd8\xff"
LARGEST = 2_000_000
"""Bytes of a picture."""


def render(data: dict[str, Any], pictures: dict[str, str]) -> str:
    """The page.

    What a run wrote is in it as JSON alone, in which no character can end a script block; the page shows it as text.
    Only the page's own style and script may act, by their hashes in its Content-Security-Policy.
    """
    folder = files("vrft.report")
    style = (folder / "report.css").read_text(encoding="utf-8")
    script = "\n".join((folder / name).read_text(encoding="utf-8") for name in SCRIPTS)
    parts = {
        "style": style,
        "script": script,
        "style_hash": _hash(style),
        "script_hash": _hash(script),
        "data": embedded(data),
        "pictures": embedded(pictures),
    }
    page = (folder / "report.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], page)


def embedded(value: Any) -> str:
    r"""JSON that stands in a script block: without the characters that mean something in HTML.

    >>> embedded("</script>")
    '"\\u003c/script\\u003e"'
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def read_pictures(folder: Path, names: Iterable[str | None], problems: list[str]) -> dict[str, str]:
    """Pictures in base64, by name; those that are no JPEG or aren't there are left out and counted."""
    wanted = sorted({name for name in names if name is not None})
    found: dict[str, str] = {}
    for name in wanted:
        path = folder / name
        if not NAME.fullmatch(name):
            continue
        try:
            content = path.read_bytes() if path.stat().st_size <= LARGEST else b""
        except OSError:
            continue
        if content.startswith(JPEG):
            found[name] = base64.b64encode(content).decode()
    if missing := len(wanted) - len(found):
        problems.append(f"{missing} of {len(wanted)} pictures are missing or broken")
    return found
