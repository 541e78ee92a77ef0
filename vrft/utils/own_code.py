"""Check a user's own classes, and add notes to their exceptions, for readable errors."""

from __future__ import annotations

import inspect
import site
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from vrft.errors import ConfigurationError

PACKAGE = Path(__file__).resolve().parents[1]

POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
MAX_TEXT = 200
"""Maximum number of characters of a completion in a message."""


def is_own_code(file: Path) -> bool:
    """Return whether a file is a user's, i.e. exists and belongs neither to vrft nor to a library."""
    file = file.resolve()
    return file.is_file() and PACKAGE not in file.parents and not in_library(file)


def in_library(file: Path) -> bool:
    """Return whether a file belongs to Python's standard library or an installed package."""
    return any(folder in file.parents for folder in _library_folders())


@cache
def _library_folders() -> frozenset[Path]:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    folders = [*map(sysconfig.get_path, names), *site.getsitepackages(), site.getusersitepackages()]
    return frozenset(Path(folder).resolve() for folder in folders)


def check_overrides(instance: object, base: type) -> None:
    """Raise ConfigurationError if an overridden method of `instance` can't be called like the method of `base`."""
    cls = type(instance)
    for name, method in inspect.getmembers(base, inspect.isfunction):
        own = getattr(cls, name)
        if own is method or name.startswith("_") or not callable(own):
            continue
        expected = [*inspect.signature(method).parameters.values()]
        if all(parameter.kind in POSITIONAL for parameter in expected) and not accepts(own, len(expected)):
            names = ", ".join(parameter.name for parameter in expected)
            raise ConfigurationError(
                f"{cls.__module__}.{cls.__qualname__}.{name}{inspect.signature(own)}: expected the parameters of "
                f"{base.__module__}.{base.__qualname__}.{name}: ({names})"
            )


def accepts(function: Callable[..., object], count: int) -> bool:
    """Return whether a function can be called with this number of positional arguments."""
    try:
        inspect.signature(function).bind(*[None] * count)
    except TypeError:
        return False
    return True


def check_arguments(function: Callable[..., object], names: tuple[str, ...], field: str) -> None:
    """Raise ConfigurationError about `field` if a function can't be called with keyword arguments of these names."""
    signature = inspect.signature(function)
    try:
        signature.bind(**dict.fromkeys(names))
    except TypeError as error:
        raise ConfigurationError(
            f"{field}: {function.__module__}.{function.__qualname__}{signature}: {error}; it is called with "
            f"{', '.join(names)}, by name, so leave out what you don't need and add **kwargs"
        ) from error


@contextmanager
def noted(note: Callable[[], str]) -> Iterator[None]:
    """Add a note, e.g. about the current sample, to an exception that leaves the block."""
    try:
        yield
    except Exception as error:
        error.add_note(note())
        raise


def question_note(image_id: object, query: str, completion: str | None = None) -> str:
    """Return a note about a question and, if given, its completion.

    >>> question_note(7, "cat", "No Objects")
    "image 7, query 'cat', completion 'No Objects'"
    """
    note = f"image {image_id}, query {query!r}"
    if completion is None:
        return note
    rest = len(completion) - MAX_TEXT
    return f"{note}, completion {completion[:MAX_TEXT]!r}" + (f" and {rest} characters more" if rest > 0 else "")
