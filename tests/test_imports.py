"""Restrictions on imports."""

import ast
from pathlib import Path

import pytest

from tests.helpers import ROOT

PACKAGE = ROOT / "vrft"
MODELS = ["rewards/learned.py", "evaluators/segmenter.py"]
"""Modules with models other than the policy."""


def imported(path: Path) -> set[str]:
    """Return the modules that a file imports, also inside functions; `from a import b` counts as a and a.b."""
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
    assert packages(PACKAGE / "training" / "grpo.py") == {"__future__", "torch", "typing"}


@pytest.mark.parametrize("part", ["tasks", "rewards", "evaluators", "data"])
def test_tasks_rewards_evaluators_and_data_do_not_know_transformers(part: str) -> None:
    files = sorted((PACKAGE / part).rglob("*.py"))
    assert files
    users = [file.relative_to(PACKAGE).as_posix() for file in files if "transformers" in packages(file)]
    assert [user for user in users if user not in MODELS] == []


@pytest.mark.parametrize("name", MODELS)
def test_other_models_import_transformers_only_when_they_are_loaded(name: str) -> None:
    assert "transformers" in packages(PACKAGE / name)
    nodes = ast.parse((PACKAGE / name).read_text()).body
    tops = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    assert tops
    assert not [node for node in tops if "transformers" in ast.unparse(node)]


def test_peft_is_imported_only_for_a_model_with_adapters() -> None:
    """Its import takes more than a second where bitsandbytes is installed."""
    users = {}
    for path in (path for path in PACKAGE.rglob("*.py") if "peft" in packages(path)):
        tree = ast.parse(path.read_text())
        lazy = [
            node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and "from peft" in ast.unparse(node)
        ]
        typed = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
        inside = {id(child) for node in [*lazy, *typed] for child in ast.walk(node)}
        froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and "peft" in str(node.module)]
        assert all(id(node) in inside for node in froms), path
        if lazy:
            users[path.name] = {node.name for node in lazy}
    adapters = {"add_adapters", "peft_config", "fill_adapters"}
    assert users.pop("lora.py") == adapters
    assert users.pop("adapted_layers.py") == {"adapted_modules"}  # called by add_adapters only
    assert users == {"weights.py": {"write"}, "fused_adapters.py": {"fuse_adapters", "is_plain"}}


def test_only_the_command_line_imports_the_algorithms() -> None:
    allowed = {PACKAGE / name for name in ("cli/app.py", "__init__.py", "__main__.py")}
    users = {file for file in PACKAGE.rglob("*.py") if imported(file) & {"vrft.training.rft", "vrft.training.sft"}}
    assert PACKAGE / "__init__.py" in users
    assert {str(file.relative_to(ROOT)) for file in users - allowed} == set()
