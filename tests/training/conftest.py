"""An uninterrupted run, and the command of the same run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import Command
from tests.helpers.kills import KILLS, STEPS
from vrft.__main__ import main


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an uninterrupted run and return its folder, next to that of its data."""
    folder = tmp_path_factory.mktemp("runs")
    assert main(KILLS.arguments(folder / "whole", folder / "data", steps=STEPS)) == 0
    return folder / "whole"


@pytest.fixture
def like_whole(whole: Path, tmp_path: Path) -> Command:
    """Return a function that builds the command of the same run in the test's folder, plus further arguments."""

    def command(*more: str) -> list[str]:
        return [*KILLS.arguments(tmp_path / "run", whole.parent / "data", steps=STEPS), *more]

    return command
