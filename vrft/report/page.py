"""Render a self-contained HTML file with style, script, data and pictures."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

from vrft.utils.display import counted
from vrft.utils.regular_files import read_regular

SCRIPTS = ("dom.js", "charts.js", "pictures.js", "rollouts.js", "report.js")

PICTURE_NAME = re.compile(r"[0-9a-f]{16}\.jpg")
JPEG_SIGNATURE = b"\xff\xd8\xff"
MAX_PICTURE_BYTES = 2_000_000


def render(data: dict[str, Any], pictures: dict[str, str]) -> str:
    """Render the page.

    The run's data is untrusted: it is embedded as JSON without characters that could end the script block, and shown as
    text. The Content-Security-Policy allows only the page's own style and script, by their hashes.
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
    r"""Encode a value as JSON for a script block, with the characters that are special in HTML escaped.

    >>> embedded("</script>")
    '"\\u003c/script\\u003e"'
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def read_pictures(folder: Path, names: Iterable[str | None], problems: list[str]) -> dict[str, str]:
    """Return pictures in base64 by name. Report the number of missing files and of files that are not JPEG."""
    wanted = sorted({name for name in names if name is not None})
    found: dict[str, str] = {}
    for name in wanted:
        path = folder / name
        if not PICTURE_NAME.fullmatch(name):
            continue
        try:
            content = read_regular(path) if path.stat().st_size <= MAX_PICTURE_BYTES else b""
        except OSError:
            continue
        if content.startswith(JPEG_SIGNATURE):
            found[name] = base64.b64encode(content).decode()
    if missing := len(wanted) - len(found):
        problems.append(f"missing or broken: {missing} of {counted(len(wanted), 'picture')}")
    return found
