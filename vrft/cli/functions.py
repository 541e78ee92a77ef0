"""Look up functions that a config names. They must be the user's own, and are never called to create others."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable, Sequence
from functools import reduce
from operator import or_
from pathlib import Path
from types import FunctionType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from jsonargparse.typing import register_type
from torch import Tensor

from vrft.utils.own_code import in_library

OWN_PACKAGE = __name__.partition(".")[0]


class UserFunction:
    """The type of a field whose value is the name, `module.function`, of a user's function."""


def find_function(path: object) -> Callable[..., Any]:
    """Return the user's function that a field names.

    The function must be defined in a module in the working folder or in a folder of `PYTHONPATH`. Functions of
    installed packages are refused, because a config could otherwise load a pickle with `torch.load` or run a completion
    as a command.

    Raises:
        ValueError: the value is not the name of such a function.
    """
    if inspect.isfunction(path):
        return path
    expected = "expected the name of a function of your own, module.function"
    if not isinstance(path, str) or not all(part.isidentifier() for part in path.split(".")) or "." not in path:
        raise ValueError(f"{expected}, got {path!r}")
    module, _, name = path.rpartition(".")
    if not _is_users(module):
        raise ValueError(f"{expected}, in the working folder or in a folder of PYTHONPATH, got {path!r}")
    try:
        function = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise ValueError(f"{expected}; {path!r}: {error}") from error
    if not isinstance(function, FunctionType) or not _is_users(function.__module__):
        raise ValueError(f"{expected}; {module} defines no function {name!r}")
    return function


def _is_users(module: str) -> bool:
    """Return whether a module is outside of Python's library, the installed packages and vrft."""
    top = module.partition(".")[0]
    if top == OWN_PACKAGE:
        return False
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):  # `__main__` has no spec in a notebook
        return top == "__main__"
    if spec is None:
        return False
    files = [*(spec.submodule_search_locations or []), *([spec.origin] if spec.has_location and spec.origin else [])]
    return bool(files) and not any(in_library(Path(file).resolve()) for file in files)


def function_path(function: Callable[..., Any]) -> str:
    """Return the name of a function in a config."""
    return f"{function.__module__}.{function.__qualname__}"


register_type(UserFunction, function_path, find_function, type_check=lambda value, _: inspect.isfunction(value))


def restrict_callables(hint: Any) -> Any:
    """Replace `Callable` in a type by `UserFunction`, unless it is a factory of a class, e.g. of an optimizer.

    For `Callable`, jsonargparse would accept any importable callable, and instantiate any class with a `__call__`.

    >>> restrict_callables(list[Callable[[int], float]])
    list[vrft.cli.functions.UserFunction]
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if Callable in (origin, hint):
        return hint if arguments and _is_factory(arguments[-1]) else UserFunction
    if origin is Literal or not arguments:
        return hint
    replaced = tuple(restrict_callables(argument) for argument in arguments)
    if replaced == arguments:
        return hint
    return reduce(or_, replaced) if origin in (Union, UnionType) else origin[replaced]


def _is_factory(returned: Any) -> bool:
    """Return whether a type consists of classes that a config can name by `class_path`."""
    members = _members(returned)
    return bool(members) and all(
        inspect.isclass(member) and member.__module__ not in ("builtins", "typing") and not issubclass(member, Tensor)
        for member in members
    )


def _members(hint: Any) -> Sequence[Any]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else [hint]
