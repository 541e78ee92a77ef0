"""Systems other than Linux: names that Windows lacks, and devices without float64."""

from __future__ import annotations

import importlib
import ntpath
import os
import pickle
import pkgutil
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.trainer.connectors import signal_connector
from PIL import Image

from tests.helpers import CSV_ONLY
from tests.helpers.finished import short_fit
from tests.helpers.forks import Fork
from vrft.policy.chat_template import Renderer
from vrft.policy.checkpoint import BUILT_IN
from vrft.policy.processor import Encoder
from vrft.tasks import DetectionTask
from vrft.types import Sample
from vrft.utils import display, files, interrupts
from vrft.utils.display import shell_word
from vrft.utils.files import relative_path, write_json
from vrft.utils.processors import load_processor

SIGNALS = ("USR1", "USR2", "CHLD", "HUP", "KILL", "ALRM", "STOP", "CONT", "QUIT")
CALLS = ("fork", "forkpty", "mkfifo", "getuid", "geteuid", "getgid", "killpg", "setsid", "uname", "chown", "O_NOCTTY")
CALLS += ("getpgid", "statvfs")
MODULES = ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog")
"""Names that Windows lacks."""


def run_without_names(command: list[str]) -> int:
    """Import vrft again, without names that Windows lacks, which other packages may have used, and run a command."""
    signal_connector.signal = SimpleNamespace(**vars(signal))  # Lightning asks for the system's name
    for name in SIGNALS:
        delattr(signal, f"SIG{name}")
    for name in CALLS:
        delattr(os, name)
    sys.modules |= dict.fromkeys(MODULES)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(1314, "A required privilege is not held by the client")

    os.symlink = os.link = refuse
    for name in [name for name in sys.modules if name.partition(".")[0] == "vrft"]:
        del sys.modules[name]
    for name in [name for name, entry in StrategyRegistry.items() if entry["strategy"].__module__.startswith("vrft.")]:
        del StrategyRegistry[name]
    again = importlib.import_module("vrft")
    for module in pkgutil.walk_packages(again.__path__, "vrft."):
        if module.name not in ("vrft.vllm_plugin", "vrft.__main__"):
            importlib.import_module(module.name)
    return importlib.import_module("vrft.__main__").main(command)


@pytest.mark.slow(seconds=5)
def test_a_run_needs_no_names_that_windows_lacks(tmp_path: Path) -> None:
    more = [CSV_ONLY, "--trainer.max_steps=1", "--model.num_generations=2", "--model.max_completion_length=8"]
    command = [*short_fit(tmp_path, *more), "--data.val_size=2"]
    done = Fork(run_without_names, command, output=tmp_path / "output")
    assert done.wait() == 0, done.output.read_text()[-3000:]
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert last.is_file()
    assert not last.is_symlink()


def test_workers_that_are_spawned_get_the_encoder() -> None:
    """macOS and Windows spawn workers: what they need is pickled."""
    encoder = Encoder(load_processor(str(BUILT_IN / "tiny-detection")), DetectionTask(), "thousandths")
    sample = Sample(0, (Image.new("RGB", (60, 40), "red"),), 1, "cat", None)
    expected, found = (each([sample]).inputs[0] for each in (encoder, pickle.loads(pickle.dumps(encoder))))
    assert {*found} == {*expected} != set()
    assert all(torch.equal(found[name], expected[name]) for name in found if isinstance(found[name], torch.Tensor))


def test_a_file_that_is_open_for_a_moment_is_replaced_on_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(tmp_path / "x.json", 1)
    rename, refused = Path.replace, []

    def replace(path: Path, name: Path) -> Path:
        if len(refused) < 2:
            refused.append(path)
            raise PermissionError(13, "used by another process", str(name))
        return rename(path, name)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(PermissionError):  # elsewhere it means what it says
        write_json(tmp_path / "x.json", 2)
    refused.clear()
    monkeypatch.setattr(files, "sys", SimpleNamespace(platform="win32"))
    write_json(tmp_path / "x.json", 3)
    assert (tmp_path / "x.json").read_text() == "3\n"
    assert len(refused) == 2


def test_a_ctrl_c_is_repeated_without_a_signal_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "sys", SimpleNamespace(platform="win32"))
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("ends the process on Windows"))
    monkeypatch.setattr(interrupts, "REPEAT_AFTER", 0.01)
    received: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: received.append(number))
    try:
        with interrupts.repeated_interrupts():
            signal.raise_signal(signal.SIGINT)
            end = time.monotonic() + 60
            while len(received) < 2 and time.monotonic() < end:
                time.sleep(0.01)
    finally:
        signal.signal(signal.SIGINT, before)
    assert received == [signal.SIGINT] * 2


def test_a_template_that_is_ended_is_said_to_take_too_long_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = SimpleNamespace(returncode=1, kill=lambda: None, communicate=lambda: None)
    renderer = Renderer()
    renderer._end_after_timeout(ended)  # type: ignore[arg-type]
    assert renderer._failure(ended).startswith("does not end within")  # type: ignore[arg-type]


def test_words_of_commands_are_quoted_for_the_shell_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shell_word("my runs/x") == "'my runs/x'"
    monkeypatch.setattr(display, "sys", SimpleNamespace(platform="win32"))
    assert [shell_word(path) for path in (r"C:\my runs\x", r"C:\x")] == [r'"C:\my runs\x"', r"C:\x"]


def test_a_path_on_another_drive_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    assert relative_path(f"{os.getcwd()}{os.sep}run{os.sep}last.ckpt") == f"run{os.sep}last.ckpt"
    monkeypatch.setattr(os, "path", ntpath)
    monkeypatch.setattr(os, "getcwd", lambda: "C:\\work")
    assert relative_path("C:\\work\\run\\last.ckpt") == "run\\last.ckpt"
    assert relative_path("D:\\run\\last.ckpt") == "D:\\run\\last.ckpt"
