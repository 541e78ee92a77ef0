"""Input lines for `python -m vrft score`."""

from __future__ import annotations

import json
from pathlib import Path

BOX = "[{'Position': [0, 10, 500, 1000], 'Confidence': 0.9}]"
DETECTION = {
    "completion": f"<think>one</think><answer>{BOX}</answer>",
    "solution": "<answer>[{'Position': [0, 10, 500, 1000]}]</answer>",
    "width": 640,
    "height": 480,
}
NAME = {"completion": "<think>a</think><answer>rose</answer>", "solution": "<answer>rose</answer>"}


def write(folder: Path, *entries: object) -> str:
    """Write entries as JSON lines, strings verbatim, and return the path."""
    path = folder / "answers.jsonl"
    lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)
