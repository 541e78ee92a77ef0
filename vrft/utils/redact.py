"""Redaction of keys and passwords from what a run prints and writes."""

from __future__ import annotations

import os
import re
from typing import Any

PLACEHOLDER = "(hidden)"
NAME = r"(?:[\w.]*[._-])?(?:api_?key|token|passw(?:or)?d|secret|credentials?)"
SECRET_NAME = re.compile(NAME, re.IGNORECASE)
ASSIGNED = re.compile(rf"(?<![\w.])({NAME}[\"']?\s*[=:]\s*)([\"']?)[^\s\"',}}\]]+", re.IGNORECASE)
IN_ADDRESS = re.compile(r"(\w://)[^\s/@]+@")
MIN_SECRET_CHARACTERS = 8
"""Shorter values of environment variables are not redacted, because they occur in texts by chance."""


def is_secret(name: str) -> bool:
    """Return whether a setting or variable of this name holds a secret: `api_key`, `hf_token`, not `max_tokens`."""
    return SECRET_NAME.fullmatch(name) is not None


def redact(text: str) -> str:
    """Redact secrets in a text: values of environment variables, assignments to such names, logins in URLs.

    >>> redact("--logger.api_key=abc http://me:pw@host")
    '--logger.api_key=(hidden) http://(hidden)@host'
    """
    for name, value in os.environ.items():
        if is_secret(name) and len(value) >= MIN_SECRET_CHARACTERS:
            text = text.replace(value, PLACEHOLDER)
    return IN_ADDRESS.sub(rf"\1{PLACEHOLDER}@", ASSIGNED.sub(rf"\1\2{PLACEHOLDER}", text))


def redact_settings(value: Any) -> Any:
    """Redact settings before saving them. A secret becomes None, so that a rerun needs it again."""
    if isinstance(value, dict):
        return {key: None if is_secret(str(key)) else redact_settings(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [redact_settings(entry) for entry in value]
    return redact(value) if isinstance(value, str) else value
