"""Progress: a bar in a terminal, occasional lines elsewhere."""

from __future__ import annotations

import os
import pty
import re
import select
from pathlib import Path

import pytest

import vrft.utils.progress
from tests.helpers import CSV_ONLY, Command
from tests.helpers.forks import fork_vrft
from vrft.__main__ import main
from vrft.utils.progress import ThrottledPrinter, progress

SHOWN = ("--trainer.enable_progress_bar=true", CSV_ONLY, "--data.batch_size=8", "--trainer.max_steps=2")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return a mutable time that replaces `time.monotonic`."""
    now = [0.0]
    monkeypatch.setattr(vrft.utils.progress.time, "monotonic", lambda: now[0])
    return now


def test_lines_come_at_intervals(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    lines = ThrottledPrinter()
    for second in range(35):
        clock[0] = float(second)
        lines.say(f"at {second}")
    lines.say("the end", always=True)
    assert capsys.readouterr().out.splitlines() == ["at 10", "at 20", "at 30", "the end"]


def test_work_prints_nothing_before_the_interval(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress("images checked", 3) as advance:
        for done in range(3):
            advance(done + 1)
        clock[0] = 12.0
        advance(3)
    with progress("other ranks'", 3, quiet=True) as advance:
        clock[0] = 100.0
        advance(3)
    assert capsys.readouterr().out == "images checked 3/3\n"


def test_without_a_terminal_long_work_prints_its_progress(
    quick_fit: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(vrft.utils.progress, "INTERVAL", 0.0)  # print every line
    assert main(quick_fit(*SHOWN)) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^rollout 1/64$", shown, re.MULTILINE)
    assert re.search(r"^rollout, \d+ of 64 rows done, \d+/64$", shown, re.MULTILINE)
    assert re.search(r"^update 1/1$", shown, re.MULTILINE)
    assert re.search(r"^decoding, \d+ of 13 rows done, \d+/64$", shown, re.MULTILINE)
    assert re.search(r"^evaluation 1/1 batches$", shown, re.MULTILINE)
    assert re.search(r"^step 2/2  reward ", shown, re.MULTILINE)
    assert re.search(r"^export 4/4$", shown, re.MULTILINE)
    assert "━" not in shown.split("held-out images, greedy answers")[0]


def test_a_short_run_prints_only_its_last_step(quick_fit: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(quick_fit(*SHOWN)) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if re.search(r"\d/\d", line)]
    assert len(said) < 4
    assert any(line.startswith("step 2/2") for line in said)


def test_in_a_terminal_there_are_bars(quick_fit: Command, tmp_path: Path) -> None:
    leader, follower = pty.openpty()
    command = quick_fit(*SHOWN, "--trainer.limit_val_batches=0")
    process = fork_vrft(command, Path(os.ttyname(follower)), cwd=tmp_path, TERM="xterm", COLUMNS="200")
    shown = b""
    while process.poll() is None or select.select([leader], [], [], 0)[0]:
        if select.select([leader], [], [], 0.1)[0]:
            shown += os.read(leader, 65536)
    os.close(follower)
    os.close(leader)
    assert process.wait() == 0, shown.decode()
    text = shown.decode()
    assert "rollouts, epoch" in text
    assert re.search(r"rollout, \d+ of 64 rows done", text)
    assert "step 2/2" not in text
