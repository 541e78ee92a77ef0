"""Who may import what, and that help needs no torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "vrft"


def imported(path: Path) -> set[str]:
    """Every module that a file imports, at its top or inside functions; `from a import b` counts as a and a.b."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def packages(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imported(path)}


def test_the_objective_needs_torch_alone() -> None:
    assert packages(PACKAGE / "grpo.py") == {"__future__", "torch", "typing"}


@pytest.mark.parametrize("part", ["tasks", "rewards", "evaluators", "data"])
def test_tasks_rewards_evaluators_and_data_do_not_know_transformers(part: str) -> None:
    files = sorted((PACKAGE / part).rglob("*.py"))
    assert files
    assert [file.name for file in files if "transformers" in packages(file)] == []


def test_only_the_front_door_knows_the_algorithms() -> None:
    allowed = {PACKAGE / name for name in ("cli.py", "__init__.py", "__main__.py")}
    users = {file for file in PACKAGE.rglob("*.py") if imported(file) & {"vrft.rft", "vrft.sft"}}
    assert PACKAGE / "__init__.py" in users
    assert {str(file.relative_to(ROOT)) for file in users - allowed} == set()


def test_help_needs_no_torch() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "vrft", "--help"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    modules = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "fit" in result.stdout
    assert "vrft" in modules
    assert not modules & {"torch", "lightning", "transformers"}
