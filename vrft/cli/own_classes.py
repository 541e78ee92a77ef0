"""Hints for errors about a user's own classes in a config."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import re
import sys
from pathlib import Path

MISSING = re.compile(r"module '([\w.]+)' has no attribute '(\w+)'")
ABSTRACT = re.compile(r"but ([\w.]+)\.(\w+) is abstract|but is abstract.*Given value: ([\w.]+)\.(\w+)", re.S)


def class_hint(message: str) -> str | None:
    """Return a hint if a message is about a class that is missing in a module or abstract, else None."""
    if (missing := MISSING.search(message)) and not missing[1].startswith("vrft"):
        close = difflib.get_close_matches(missing[2], class_names_in(missing[1]), n=1)
        return f" (did you mean '{missing[1]}.{close[0]}'?)" if close else ""
    if found := ABSTRACT.search(message):
        module, name = found[1] or found[3], found[2] or found[4]
        cls = getattr(sys.modules.get(module), name, None)
        lacking = sorted(getattr(cls, "__abstractmethods__", ()))
        if lacking and not module.startswith("vrft"):
            return f" ({module}.{name} lacks the method{'s' if len(lacking) > 1 else ''} {', '.join(lacking)})"
    return None


def class_names_in(module: str) -> list[str]:
    """Return the names of the classes and functions that a module's file defines, without importing it."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return []
    tree = ast.parse(Path(spec.origin).read_bytes())
    return [node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
