"""Systems other than Linux: names that Windows lacks, and devices without float64."""

from __future__ import annotations

import json
import ntpath
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.helpers import CSV_ONLY, ROOT
from tests.helpers.finished import short_fit
from vrft.policy.checkpoint import BUILT_IN
from vrft.policy.processor import Encoder, load_processor
from vrft.tasks import DetectionTask
from vrft.types import Sample
from vrft.utils.files import relative_path

WINDOWS = """
import importlib, json, os, pkgutil, signal, sys, types

import filelock, lightning.pytorch.cli, peft, transformers, wandb  # these ask for the system's name
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.trainer.connectors import signal_connector

signal_connector.signal = types.SimpleNamespace(**vars(signal))  # Lightning asks for the system's name

for name in ("SIGUSR1", "SIGUSR2", "SIGCHLD", "SIGHUP", "SIGKILL", "SIGALRM", "SIGSTOP", "SIGCONT", "SIGQUIT"):
    delattr(signal, name)
for name in ("fork", "forkpty", "mkfifo", "getuid", "geteuid", "getgid", "killpg", "setsid", "uname", "chown",
             "O_NOCTTY", "getpgid", "statvfs"):
    delattr(os, name)
for name in ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog"):
    sys.modules[name] = None

def refuse(*args, **kwargs):
    raise OSError(1314, "A required privilege is not held by the client")

os.symlink = os.link = refuse

import vrft
from vrft.__main__ import main

for module in pkgutil.walk_packages(vrft.__path__, "vrft."):
    if module.name not in ("vrft.vllm_plugin", "vrft.__main__"):
        importlib.import_module(module.name)
sys.exit(main(json.loads(sys.argv[1])))
"""


@pytest.mark.slow(seconds=15)
def test_a_run_needs_no_names_that_windows_lacks(tmp_path: Path) -> None:
    more = [CSV_ONLY, "--trainer.max_steps=1", "--model.num_generations=2", "--model.max_completion_length=8"]
    command = [sys.executable, "-c", WINDOWS, json.dumps([*short_fit(tmp_path, *more), "--data.val_size=2"])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert last.is_file()
    assert not last.is_symlink()


def test_workers_that_are_spawned_get_the_encoder() -> None:
    """macOS and Windows spawn workers: what they need is pickled."""
    encoder = Encoder(load_processor(str(BUILT_IN / "tiny-detection")), DetectionTask(), "thousandths")
    sample = Sample(0, Image.new("RGB", (60, 40), "red"), 1, "cat", None)
    expected, found = (each([sample]).inputs[0] for each in (encoder, pickle.loads(pickle.dumps(encoder))))
    assert {*found} == {*expected} != set()
    assert all(torch.equal(found[name], expected[name]) for name in found if isinstance(found[name], torch.Tensor))


def test_a_path_on_another_drive_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    assert relative_path(f"{os.getcwd()}{os.sep}run{os.sep}last.ckpt") == f"run{os.sep}last.ckpt"
    monkeypatch.setattr(os, "path", ntpath)
    monkeypatch.setattr(os, "getcwd", lambda: "C:\\work")
    assert relative_path("C:\\work\\run\\last.ckpt") == "run\\last.ckpt"
    assert relative_path("D:\\run\\last.ckpt") == "D:\\run\\last.ckpt"
