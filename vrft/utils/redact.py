"""Redact keys and passwords in everything that a run prints and writes."""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any
from urllib.parse import quote

PLACEHOLDER = "(hidden)"

WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
"""Splits names like `HF_TOKEN`, `api-key` and `clientSecret` into words."""

SECRET_WORD = re.compile(
    r"\w*secrets?|\w*token|(?!(?:by|com|sur|over|tres)pass)\w*pass(?:word|wd|phrase|code)?s?|\w*credentials?|pwd|pat|apikeys?"
)
"""Words that name a secret: `secret`, not `secretary`; `token`, not `tokens` or `tokenizer`."""

AUTH = re.compile(r"auth(?!or(?!i))\w*")
"""`auth` and `authorization`, not `author`."""

KEYS = re.compile(
    "api|access|account|client|deploy|encryption|hmac|licen[cs]e|master|private|secret|service|shared|signing|ssh|storage"
)
"""Words before `key` in names of secrets, unlike `image_key`, which names a field of the data."""

OF_THE_MODEL = re.compile(r"(?:bos|eos|pad|unk|cls|sep|mask|image|video|vision|stop|special|per|next|first|last)token")
"""Names of vocabulary tokens, which are not secrets."""

ASSIGNED = re.compile(r"""(?<![\w.-])([-\w.]++)(["']?\s*+[=:]\s*+)""")
VALUE = re.compile(r""""[^"]*"|'[^']*'|[^\s"',}\]]+""")
FLAG = re.compile(r"--[\w.-]++")
FLAGGED = re.compile(rf"""(?<![\w.-])({FLAG.pattern})(["']?+(?:\s++(?:,\s*+)?+|,\s*+))(?!["']?--)""")
"""A flag and the separator before the next word, in a command or in a printed list of words."""
WORD = re.compile(r""""[^"]*"|'[^']*'|["']?[^\s"',}\]]+""")

AUTHORIZATION = re.compile(
    r"""((?:\bauthorization["']?\s*[=:]\s*["']?(?:\w+\s+)?)|\bbearer\s+)[^\s"',}\]]+""", re.IGNORECASE
)
IN_ADDRESS = re.compile(r"""(\w://)(?:(?:(?!://)[^\s"'<>,])*:(?:(?!://)[^\s"'<>])*|[^\s/@"'<>]+)@""")
MIN_SECRET_CHARACTERS = 6
"""Minimum length of redacted values of environment variables. Shorter values occur in texts by chance."""

NUMBER = re.compile(r"[-+]?(?:\d{1,5}(?:/\d{1,5})?|\d*\.\d+(?:e[-+]?\d+)?)(?:%|s|ms)?[.;:)]*")
"""Counts and times, as in `forward pass: 3.2 s`. Integers of six or more digits may be passwords."""

PASSWORD = re.compile(r"\w*pass(?:word|wd|phrase|code)s?|pwd")
"""Words for secrets that may be short numbers."""

PLACES = ("path", "dir", "file", "sock")
"""Last words of environment variables with paths, e.g. `SSH_AUTH_SOCK` and `HF_TOKEN_PATH`."""

NO_SECRETS = frozenset({"false", "disabled", "enabled", "default"})
"""Values of switches, which are not secrets whatever the variable's name."""


def is_secret(name: str) -> bool:
    """Return whether a setting with this name is a secret: `api_key`, `hf_token`, but not `max_tokens`, `image_key`."""
    words = _words(name.rpartition(".")[2])
    if OF_THE_MODEL.fullmatch("".join(words[-2:])):
        return False
    after_key = [KEYS.fullmatch(first) for first, second in pairwise(words) if second == "key"]
    if any(after_key) or any(AUTH.fullmatch(word) for word in words):
        return True
    return bool(words) and SECRET_WORD.fullmatch(words[-1]) is not None


def is_secret_variable(name: str) -> bool:
    """Return whether an environment variable is a secret: any `…_KEY`, and names with a word for secrets anywhere."""
    if name in ("PWD", "OLDPWD"):  # the working folder
        return False
    words = _words(name)
    if words and words[-1] in PLACES:
        return False
    return "key" in words[1:] or any(SECRET_WORD.fullmatch(word) or AUTH.fullmatch(word) for word in words)


def _words(name: str) -> list[str]:
    return [word.lower() for word in WORDS.findall(name)]


def redact(text: str) -> str:
    """Redact secrets in a text: values of secret environment variables, assignments to secret names, logins in URLs.

    The word after a flag like `--api-key` is redacted too.

    >>> redact("--logger.api_key=abc http://me:p/w@host -H 'Authorization: Bearer abc'")
    "--logger.api_key=(hidden) http://(hidden)@host -H 'Authorization: Bearer (hidden)'"
    """
    for value in sorted(_secret_values(), key=len, reverse=True):
        text = text.replace(value, PLACEHOLDER)
    text = AUTHORIZATION.sub(rf"\1{PLACEHOLDER}", text)
    text = _redact_named(_redact_named(text, ASSIGNED, VALUE), FLAGGED, WORD)
    return IN_ADDRESS.sub(rf"\1{PLACEHOLDER}@", text)


def _redact_named(text: str, named: re.Pattern[str], values: re.Pattern[str]) -> str:
    """Hide values after secret names. `named` matches a name and the sign after it, `values` a value."""
    parts, end = [], 0
    for found in named.finditer(text):
        name, sign = found.groups()
        if found.start() < end or not is_secret(name):  # a value may contain another name: "arguments: --api_key=…"
            continue
        value = values.match(text, found.end())
        if value is None or AUTHORIZATION.match(text, found.start()):
            continue
        if not value[0].strip("\"'").startswith(PLACEHOLDER):
            parts += [text[end : found.start()], _hide_value(name, sign, value[0])]
            end = value.end()
    return "".join([*parts, text[end:]])


def _hide_value(name: str, sign: str, value: str) -> str:
    if NUMBER.fullmatch(value) and not PASSWORD.fullmatch(_words(name)[-1]):
        return name + sign + value
    around = value[0] if value[0] in "\"'" else ""
    return f"{name}{sign}{around}{PLACEHOLDER}{around}"


def _secret_values() -> Iterator[str]:
    """Yield the values of secret environment variables, plain and as escaped in JSON, HTML and URLs."""
    for name, value in os.environ.items():
        if len(value) < MIN_SECRET_CHARACTERS or value.lower() in NO_SECRETS or not is_secret_variable(name):
            continue
        if os.sep not in value or not os.path.exists(value):  # a path is not a secret
            yield from {
                value,
                json.dumps(value)[1:-1],
                html.escape(value),
                quote(value, safe=""),
                " ".join(value.split()),
            }


def redact_settings(value: Any) -> Any:
    """Redact settings for saving. Secrets become None, so a rerun needs them again."""
    if isinstance(value, dict):
        return {key: None if is_secret(str(key)) else redact_settings(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return _redact_list(value)
    return redact(value) if isinstance(value, str) else value


def _redact_list(entries: list[Any]) -> list[Any]:
    """Redact the words of a command, in which a flag like `--api-key` makes all words up to the next flag secret."""
    hidden, after_secret = [], False
    for entry in entries:
        if isinstance(entry, str) and entry.startswith("--"):
            after_secret = FLAG.fullmatch(entry) is not None and is_secret(entry)
            hidden.append(redact_settings(entry))
        else:
            hidden.append(None if after_secret else redact_settings(entry))
    return hidden
