"""Check of a checkpoint's chat template before the first prompt."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

from vrft.errors import ConfigurationError
from vrft.policy.tiny import CHAT_TEMPLATE

LIMITS = {"cpu_seconds": 2, "memory_bytes": 2**29, "characters": 100_000}
"""Limits of a template for one short question; see `render_template`."""
SECONDS = 300.0
"""Time for the process that renders, which first imports transformers, perhaps from a slow disk."""

QUESTION, SYSTEM = "Where is it?", "Answer in English."


def check_template(processor: Any, checkpoint: str, system: bool = False) -> None:
    """Render the chat template for a question about an image, within limits of time and memory.

    Args:
        processor: the checkpoint's processor.
        checkpoint: the checkpoint, for messages.
        system: whether there is a system turn, too.

    Raises:
        ConfigurationError: there is no template, it does not end, needs too much memory, fails, or has no place for the
            question, the system turn or the image.
    """
    template = processor.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    where = f"model.policy.checkpoint: {checkpoint}"
    if not template:
        raise ConfigurationError(
            f"{where} has no chat template: expected chat_template.jinja, chat_template.json or chat_template in "
            "tokenizer_config.json; copy it from the instruction-tuned model of the family"
        )
    tokens = {name: str(token) for name, token in processor.tokenizer.special_tokens_map.items() if token}
    if template != CHAT_TEMPLATE and (problem := template_problem(template, json.dumps(tokens), system)):
        raise ConfigurationError(f"{where}: its chat template {problem}")


@lru_cache
def template_problem(template: str, tokens: str, system: bool) -> str | None:
    """Return what is wrong with a template, if anything. `tokens`: special tokens that it may use, as JSON."""
    question = {"type": "text", "text": QUESTION}
    turns: list[dict[str, Any]] = [{"role": "user", "content": [{"type": "image"}, question]}]
    first = [{"role": "system", "content": [{"type": "text", "text": SYSTEM}]}] if system else []
    conversations = [first + turns, [*first, {"role": "user", "content": [question]}]]
    request = {"template": template, "tokens": json.loads(tokens), "conversations": conversations}
    answer = render(request)
    if "error" in answer:
        return str(answer["error"]) + (" (with a system turn)" if system else "")
    text, without_image = answer["texts"]
    for wanted, name in ((QUESTION, "the question"), *([(SYSTEM, "the system turn")] if system else [])):
        if wanted not in text:
            return f"leaves out {name}"
    if text == without_image or "'type':" in text:
        return "has no place for an image; expected that of a vision-language model"
    return None


def render(request: dict[str, Any]) -> dict[str, Any]:
    """Return the answer of `render_template` to a request."""
    command = [sys.executable, "-P", str(Path(__file__).with_name("render_template.py"))]
    given = json.dumps(request | LIMITS)
    try:
        done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"does not end within {SECONDS:.0f} s"}
    if done.returncode < 0:  # killed by the limit of time
        return {"error": f"does not end within {LIMITS['cpu_seconds']} s"}
    if done.returncode:
        return {"error": f"can't be rendered: {' '.join(done.stderr.split())[-200:]}"}
    return dict(json.loads(done.stdout))
