"""Packages that import their classes on first use still list them."""

from __future__ import annotations

import ast
from types import ModuleType

import pytest

import vrft
from tests.helpers import ROOT
from vrft import data, evaluators


@pytest.mark.parametrize("package", [vrft, data, evaluators])
def test_a_package_lists_its_lazy_names(package: ModuleType) -> None:
    assert {*package.__all__} <= {*dir(package)}
    assert {"__name__", "__doc__", "__all__"} <= {*dir(package)}
    assert len(dir(package)) == len({*dir(package)})
    assert package.__all__


@pytest.mark.parametrize("package", [data, evaluators])
def test_a_stub_declares_what_it_imports(package: ModuleType) -> None:
    stub = ROOT.joinpath(*package.__name__.split("."), "__init__.pyi")
    tree = ast.parse(stub.read_text(encoding="utf-8"))
    imported = [alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    declared = [ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign)]
    assert declared == [sorted(imported)]
    assert declared == [package.__all__]
