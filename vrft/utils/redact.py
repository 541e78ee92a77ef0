"""Keys and passwords: they stay out of what a run prints and writes."""

from __future__ import annotations

import os
import re
from typing import Any

HIDDEN = "(hidden)"
NAME = r"(?:[\w.]*[._-])?(?:api_?key|token|passw(?:or)?d|secret|credentials?)"
SECRET_NAME = re.compile(NAME, re.IGNORECASE)
ASSIGNED = re.compile(rf"(?<![\w.])({NAME}[\"']?\s*[=:]\s*)([\"']?)[^\s\"',}}\]]+", re.IGNORECASE)
IN_ADDRESS = re.compile(r"(\w://)[^\s/@]+@")
SHORTEST = 8
"""Characters of a value in the environment that is looked for in texts: shorter ones occur by chance."""


def is_secret(name: str) -> bool:
    """Whether a setting or a variable of this name holds one: `api_key`, `hf_token`, but not `max_tokens`."""
    return SECRET_NAME.fullmatch(name) is not None


def redact(text: str) -> str:
    """A text without secrets: values of environment variables, what is assigned to such a name, logins in addresses.

    >>> redact("--logger.api_key=abc http://me:pw@host")
    '--logger.api_key=(hidden) http://(hidden)@host'
    """
    for name, value in os.environ.items():
        if is_secret(name) and len(value) >= SHORTEST:
            text = text.replace(value, HIDDEN)
    return IN_ADDRESS.sub(rf"\1{HIDDEN}@", ASSIGNED.sub(rf"\1\2{HIDDEN}", text))


def redact_settings(value: Any) -> Any:
    """The same for settings as they are saved: a secret becomes null, so that a rerun asks for it."""
    if isinstance(value, dict):
        return {key: None if is_secret(str(key)) else redact_settings(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [redact_settings(entry) for entry in value]
    return redact(value) if isinstance(value, str) else value
