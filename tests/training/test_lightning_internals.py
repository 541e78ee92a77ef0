"""Only one file uses private names of Lightning, which may change in any minor release."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import lightning.pytorch
import pytest

import vrft

PACKAGE = Path(vrft.__file__).parent
ALLOWED = PACKAGE / "training" / "lightning_internals.py"
NOT_ITS_OWN = {"_shutdown_workers", "_replace", "_asdict", "_fields", "_Unpickler"}
"""Names of the standard library and of torch that also occur in Lightning."""


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def private_names(tree: ast.AST) -> set[str]:
    """Return the private attributes that code accesses and the private functions that it defines."""
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and is_private(node.attr)}
    return used | {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and is_private(node.name)}


@cache
def names_in_lightning() -> set[str]:
    """Return Lightning's private names, found in its text: its syntax trees take seconds to build."""
    folder = Path(lightning.pytorch.__file__).parent
    texts = (path.read_text() for path in folder.rglob("*.py"))
    return {name for text in texts for name in re.findall(r"(?:\.|\bdef )(_[^\W_]\w*)", text)} - NOT_ITS_OWN


def private_imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "lightning":
            yield from (alias.name for alias in node.names if is_private(alias.name))


def foreign_accesses(tree: ast.AST) -> Iterator[str]:
    """Yield accesses to Lightning's private names on objects other than `self` and `cls`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in names_in_lightning():
            owner = node.value
            if not (isinstance(owner, ast.Name) and owner.id in ("self", "cls")):
                yield ast.unparse(node)


def inherited_names(path: Path) -> Iterator[str]:
    """Yield private names that a class shares with its Lightning base classes."""
    if path.name in ("__main__.py", "vllm_plugin.py"):  # not importable here, and without such classes
        return
    name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    module = importlib.import_module(name)
    for kind in vars(module).values():
        if inspect.isclass(kind) and kind.__module__ == name:
            bases = [base for base in kind.__mro__ if base.__module__.partition(".")[0] == "lightning"]
            theirs = {found for base in bases for found in private_names(parsed(base))}
            if not theirs:  # to find the source of a class takes longer than all else
                continue
            yield from (f"{kind.__name__}.{found}" for found in sorted(private_names(parsed(kind)) & theirs))


@cache
def parsed(kind: type) -> ast.AST:
    return ast.parse(textwrap.dedent(inspect.getsource(kind)))


@pytest.mark.slow
def test_no_other_file_uses_private_names_of_lightning() -> None:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text())
        found[path] = [*private_imports(tree), *foreign_accesses(tree), *inherited_names(path)]
    assert len(found[ALLOWED]) > 10
    assert {path: names for path, names in found.items() if names and path != ALLOWED} == {}
