"""Progress: a bar in a terminal, occasional lines elsewhere."""

from __future__ import annotations

import os
import pty
import re
import select
from pathlib import Path

import pytest
from lightning.pytorch.callbacks.progress.rich_progress import CustomProgress

import vrft.training.progress_bar
import vrft.utils.progress
from tests.helpers import CSV_ONLY, Command
from tests.helpers.forks import Fork
from vrft.__main__ import main
from vrft.utils.progress import ThrottledPrinter, progress

SHOWN = ("--trainer.enable_progress_bar=true", CSV_ONLY, "--data.batch_size=8", "--trainer.max_steps=2")
SMALL = ("--model.num_generations=2", "--model.max_completion_length=8")


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
    assert capsys.readouterr().out.splitlines() == ["at 9", "at 18", "at 27", "the end"]


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


def test_slow_work_prints_each_line(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    """With steps of 19 s, a printer of 30 s that skipped one would say nothing for 38 s."""
    lines = ThrottledPrinter(30.0)
    for second in (19.0, 38.0, 57.0):
        clock[0] = second
        lines.say(f"at {second:.0f}")
    assert capsys.readouterr().out.splitlines() == ["at 19", "at 38", "at 57"]


def test_without_a_terminal_long_work_prints_its_progress(
    quick_fit: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(vrft.training.progress_bar, "LINE_SECONDS", 0.0)  # print every line
    assert main(quick_fit(*SHOWN, "--trainer.val_check_interval=1")) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^step 1/2: rollout 1/64$", shown, re.MULTILINE)
    assert re.search(r"^step 2/2: rollout, \d+ of 64 rows done, \d+/64$", shown, re.MULTILINE)
    assert re.search(r"^step 1/2: update 1/1$", shown, re.MULTILINE)
    assert re.search(r"^evaluation: decoding, \d+ of 13 rows done, \d+/64$", shown, re.MULTILINE)
    assert re.search(r"^evaluation: 1/1 batches$", shown, re.MULTILINE)
    assert re.search(r"^evaluation after step 1/2: 1/1 batches$", shown, re.MULTILINE)
    assert re.search(r"^step 2/2  \d:\d\d:\d\d • 0:00:00 left  reward ", shown, re.MULTILINE)
    assert re.search(r"^export 4/4$", shown, re.MULTILINE)
    assert "━" not in shown.split("held-out images, greedy answers")[0]


def test_a_short_run_prints_its_first_and_last_step_and_those_before_evaluations(
    quick_fit: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = ("--data.batch_size=2", "--trainer.max_steps=6", "--trainer.val_check_interval=3")
    assert main(quick_fit(*SHOWN, *SMALL, *steps)) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if re.search(r"\d/\d", line)]
    assert [line.partition("  ")[0] for line in said] == ["step 1/6", "step 3/6", "step 6/6"]


def test_epochs_are_shown_where_only_epochs_are_limited(quick_fit: Command, capsys: pytest.CaptureFixture[str]) -> None:
    epochs = ("--trainer.max_steps=-1", "--trainer.max_epochs=2", "--trainer.limit_val_batches=0")
    assert main(quick_fit(*SHOWN, *SMALL, *epochs)) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert [line.partition("  ")[0] for line in said] == ["step 1, epoch 1/2", "step 4, epoch 2/2"]


def draw_each_time(command: list[str]) -> int:
    """Run a command that draws its bar whenever it asks for it, not ten times per second, in which phases may end."""
    CustomProgress.soft_refresh = CustomProgress.refresh  # type: ignore[method-assign]
    return main(command)


def test_in_a_terminal_there_are_bars(quick_fit: Command, tmp_path: Path) -> None:
    leader, follower = pty.openpty()
    command, terminal = quick_fit(*SHOWN, "--trainer.limit_val_batches=0"), Path(os.ttyname(follower))
    process = Fork(draw_each_time, command, output=terminal, cwd=tmp_path, TERM="xterm", COLUMNS="80")
    shown = b""
    while process.poll() is None or select.select([leader], [], [], 0)[0]:
        if select.select([leader], [], [], 0.1)[0]:
            shown += os.read(leader, 65536)
    os.close(follower)
    os.close(leader)
    assert process.wait() == 0, shown.decode()
    text = shown.decode()
    assert re.search(r"step 2/2 +━+ +0:00:\d\d • 0:00:00 left", re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", text))
    assert re.search(r"rollout, \d+ of 64 rows done", text)
    plain = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", text)
    assert re.search(r"^reward \d\.\d{3}  kl -?\d\.\d{3}  iou .*  confidence .*  format \d\.\d{3} *\r?$", plain, re.M)
    assert max(len(line.strip()) for line in plain.splitlines() if "•" in line) <= 80
    assert "device: cpu" in text
    assert not re.search("Loading weights|available|Seed set|shards", text)
    assert not re.search(r"•[^•\n]*it/s", text)
    assert "step 2/2:" not in text
