"""Imports of the package run downward along one line of layers, without cycles among files or folders."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from tests.helpers import ROOT

LAYERS = [
    ["__main__", "__init__"],
    ["cli"],
    ["callbacks", "doctor"],
    ["training"],
    ["rollout", "evaluators"],
    ["policy", "data"],
    ["tasks"],
    ["rewards", "guards", "report", "loggers"],
    ["boxes", "answers", "mazes", "utils", "run_dir", "vllm_plugin"],
    ["types", "errors", "indices"],
]
"""Folders and files of the package by layer. Each imports from lower layers, or from its own without a cycle."""

DEPTH = {name: depth for depth, layer in enumerate(LAYERS) for name in layer}


@cache
def modules() -> dict[str, Path]:
    """Return every module of the package by its dotted name."""
    files = sorted((ROOT / "vrft").rglob("*.py"))
    return {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


@cache
def homes() -> dict[str, str]:
    """Return the module of each class that can be imported from the package itself (`from vrft import RFT`)."""
    tree = ast.parse((ROOT / "vrft" / "__init__.py").read_text())
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in nodes for alias in node.names}


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and module of every import, also in functions, under TYPE_CHECKING and by `import_module`."""
    stub = path.with_suffix(".pyi")  # what a package imports on first use
    text = path.read_text() + (stub.read_text() if stub.exists() else "")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import in line {node.lineno}"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                home = whole if whole in modules() else str(node.module)
                yield node.lineno, homes().get(alias.name, home) if home == "vrft" else home
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "import_module":
            yield from ((node.lineno, arg.value) for arg in node.args if isinstance(arg, ast.Constant))


@cache
def arrows() -> list[tuple[str, str, str]]:
    """Return every import within the package: the importing module, the imported module and the location."""
    return [
        (module, name, f"{path.relative_to(ROOT)}:{line} imports {name}")
        for module, path in modules().items()
        for line, name in imports(path)
        if name in modules() and name != module
    ]


def part(module: str) -> str:
    """Return the top-level folder or file that a module belongs to."""
    return [*module.split("."), "__init__"][1]


def circle(edges: set[tuple[str, str]]) -> list[str]:
    """Return the nodes of a cycle, empty if there is no cycle."""
    graph: dict[str, set[str]] = {}
    for start, end in edges:
        graph.setdefault(start, set()).add(end)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1][::-1]
    return []


def test_every_part_of_the_package_has_a_layer() -> None:
    assert {part(module) for module in modules()} == {*DEPTH}


def test_no_import_runs_upward() -> None:
    upward = [where for start, end, where in arrows() if DEPTH[part(start)] > DEPTH[part(end)]]
    assert not upward, "\n".join(upward)


def test_files_do_not_import_each_other_in_a_cycle() -> None:
    found = circle({(start, end) for start, end, _ in arrows()})
    assert not found, " -> ".join(found)


def test_folders_do_not_import_each_other_in_a_cycle() -> None:
    found = circle({(part(start), part(end)) for start, end, _ in arrows() if part(start) != part(end)})
    assert not found, " -> ".join(found)


def test_data_sources_build_on_the_rest_of_data() -> None:
    sources = ("vrft.data.formats", "vrft.data.datasets")
    upward = [
        where
        for start, end, where in arrows()
        if start.startswith("vrft.data.") and not start.startswith(sources) and end.startswith(sources)
    ]
    assert not upward, "\n".join(upward)
    assert not [where for start, end, where in arrows() if start.startswith(sources[0]) and end.startswith(sources[1])]


def test_a_cycle_and_an_upward_import_are_found() -> None:
    assert circle({("a", "b"), ("b", "c")}) == []
    assert circle({("a", "b"), ("b", "c"), ("c", "a")})[0] in "abc"
    assert DEPTH["cli"] < DEPTH["training"] < DEPTH["types"]
    assert len(arrows()) > 100
