"""Forked processes: what one test has set doesn't reach the processes of the next."""

from __future__ import annotations

import pytest

from tests.helpers.forks import run_python


def test_a_fork_has_the_environment_of_its_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    code = ["python", "-P", "-c", "import os; print(os.environ.get('VRFT_RUN_DIR'))"]
    monkeypatch.setenv("VRFT_RUN_DIR", "of-another-run")  # when the fork server starts
    assert run_python(code).stdout == b"of-another-run\n"
    monkeypatch.delenv("VRFT_RUN_DIR")
    assert run_python(code).stdout == b"None\n"
