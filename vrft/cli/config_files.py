"""Check the files named on the command line or in a config, and hide their content in the parser's messages."""

from __future__ import annotations

import codecs
import locale
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf.errors import OmegaConfBaseException

from vrft.cli.parser_errors import find_user_error, message_lines
from vrft.errors import ConfigurationError
from vrft.utils.regular_files import read_regular
from vrft.utils.yaml_text import RepeatedKey, UnboundedYAML, decode_yaml

MAX_BYTES = 2**18
"""Maximum size of a file that is checked as a config. Data files are larger, or have no aliases."""

YAML = (".yaml", ".yml")

MIN_CHARACTERS = 3
"""Minimum length of a line that is hidden. Shorter lines occur in messages by chance."""


def check_files(args: Sequence[str]) -> None:
    """Check the files and values that the parser may read as YAML, and that no option names a special file.

    YAML must not repeat a key in a mapping or have aliases that expand without bounds. The parser (jsonargparse 4.53)
    reads files in the encoding of the locale, so non-ASCII characters need a UTF-8 locale.

    Raises:
        ConfigurationError: a file or value violates one of these rules.
    """
    for value in _values(args):
        _check(value.partition(":")[0], value)
    files = named_files(args)
    for path, text in files.items():
        _check(str(path), text)
        if path.suffix in YAML and not text.isascii() and not _reads_utf8():
            encoding = locale.getpreferredencoding(False)
            raise ConfigurationError(f"{path}: Python reads texts as {encoding} here; set PYTHONUTF8=1 to read UTF-8")
    for folder, value in _named(args, files):
        for path in (folder / value, Path(value)):
            if _is_special(path):
                raise ConfigurationError(f"{path} is a FIFO, a device or a socket; expected a regular file or a folder")


def _reads_utf8() -> bool:
    return codecs.lookup(locale.getpreferredencoding(False)).name == "utf-8"


def _check(name: str, text: str) -> None:
    error = _decoded(text)[1]
    if isinstance(error, UnboundedYAML | RepeatedKey):
        raise ConfigurationError(f"{name}: {error}")


@contextmanager
def hiding_contents(args: Sequence[str]) -> Iterator[None]:
    """Hide the lines of files other than configs in the errors of a block that parses the arguments.

    Do not use it for later work, whose errors may have to quote such files, e.g. a list of images.
    """
    try:
        yield
    except (ValueError, OmegaConfBaseException) as error:
        if (found := find_user_error(error)) is None:
            raise
        raise ConfigurationError(hide_contents(message_lines(found), args)) from error


def hide_contents(message: str, args: Sequence[str]) -> str:
    """Replace the lines of files other than configs in a message of the parser, which reads any file as a config."""
    for path, text in named_files(args).items():
        if isinstance(_decode(text), dict):
            continue
        lines = {" ".join(line.split()).removeprefix("- ") for line in text.splitlines()}
        for line in sorted(lines, key=len, reverse=True):
            if len(line) >= MIN_CHARACTERS and line not in " ".join(args):
                message = message.replace(line, f"(a line of {path})")
    return message


def named_files(args: Sequence[str]) -> dict[Path, str]:
    """Return the texts of the files named by options, or by configs among these files. Leave out large files."""
    found: dict[Path, str] = {}
    waiting = [(Path(), value) for value in _values(args)]
    while waiting:
        folder, value = waiting.pop()
        for path in {folder / value, Path(value)} if len(value) < 4096 and "\0" not in value else ():
            text = None if path in found or _is_special(path) else _read_small(path)
            if text is not None:
                found[path] = text
                waiting += [(path.parent, leaf) for leaf in _leaves(_decode(text))]
    return found


def _values(args: Sequence[str]) -> Iterator[str]:
    """Yield the values of options, and the strings in values that are YAML."""
    for word in args:
        value = word.partition("=")[2] if word.startswith("--") else word
        yield value
        if value.startswith(("{", "[")):
            yield from _leaves(_decode(value))


def _named(args: Sequence[str], files: dict[Path, str]) -> Iterator[tuple[Path, str]]:
    """Yield (folder, string) for every string that may be a path relative to the folder."""
    for value in _values(args):
        yield Path(), value
    for path, text in files.items():
        for leaf in _leaves(_decode(text)):
            yield path.parent, leaf


def _is_special(path: Path) -> bool:
    """Return whether a path is a FIFO, a device or a socket, whose reader may wait forever."""
    try:
        return path.exists() and not path.is_file() and not path.is_dir()
    except (OSError, ValueError):  # too long for a path, or with a NUL
        return False


def _read_small(path: Path) -> str | None:
    """Return the text of a small file, or None if it can't be read or is large."""
    try:
        if path.is_file() and path.stat().st_size <= MAX_BYTES:
            return read_regular(path).decode(errors="replace")
    except (OSError, ValueError):
        return None
    return None


def _decode(text: str) -> Any:
    return _decoded(text)[0]


@cache
def _decoded(text: str) -> tuple[Any, ValueError | None]:
    """Decode YAML. Return (value, None), or (None, error) if it is invalid. Cached, since several checks use it."""
    try:
        return decode_yaml(text), None
    except ValueError as error:
        return None, error


def _leaves(value: Any) -> Iterator[str]:
    """Yield the strings in a nested value."""
    if isinstance(value, dict):
        for entry in value.values():
            yield from _leaves(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from _leaves(entry)
    elif isinstance(value, str):
        yield value
