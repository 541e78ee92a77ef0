"""FIFOs, sockets, folders and links in circles in place of files: an error or a line of the report, never a wait."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.run_folders import write_run
from vrft.data.datasets.benchmarks import _variable
from vrft.data.formats.hub import load_table
from vrft.data.images import BadImage, read_image
from vrft.errors import ConfigurationError
from vrft.policy.checkpoint_files import check_folder
from vrft.report import read_run
from vrft.report.model_card import read_run as read_config
from vrft.report.page import read_pictures
from vrft.run_dir import RunDir
from vrft.training.answer_log import AnswerLog
from vrft.training.checkpoint_io import AtomicCheckpointIO
from vrft.training.sharded_checkpoint import check_shards
from vrft.utils.regular_files import read_regular


@pytest.fixture(autouse=True)
def _limit() -> Iterator[None]:
    """End a test that waits, instead of all tests."""
    signal.alarm(600)
    yield
    signal.alarm(0)


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(path))  # the path of a socket has at most 108 bytes


KINDS: dict[str, Callable[[Path], None]] = {
    "fifo": os.mkfifo,
    "socket": bind,
    "folder": Path.mkdir,
    "circle": lambda path: path.symlink_to(path),
    "device": lambda path: path.symlink_to("/dev/zero"),
    "terminal": lambda path: path.symlink_to("/dev/ptmx"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_else_is_read_in_place_of_a_file(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (
        "x.png",
        "model/config.json",
        "disk/x.arrow",
        "log/answers-0.jsonl",
        "run/config.yaml",
        "x/x.safetensors",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        KINDS[kind](tmp_path / name)
    with pytest.raises(OSError, match=r"not a regular file|Is a directory|Too many levels"):
        read_regular(tmp_path / "x.png")
    with pytest.raises(BadImage, match="can't be opened"):
        read_image(tmp_path / "x.png")
    refusing: list[tuple[str, Callable[[], object]]] = [
        ("x.png is not a checkpoint", lambda: AtomicCheckpointIO().load_checkpoint(tmp_path / "x.png")),
        ("x.safetensors is not a regular file", lambda: check_shards({}, tmp_path / "x")),
        ("config.json can't be read", lambda: check_folder(tmp_path / "model")),
        ("answers-0.jsonl: can't be read", lambda: AnswerLog(tmp_path / "log", 0, {})),
        ("run is not the folder of a run", lambda: read_config(tmp_path / "run")),
        ("x.png: not a readable MATLAB file", lambda: _variable(tmp_path / "x.png", "labels")),
        ("x.png can't be read as a dataset", lambda: load_table(str(tmp_path / "x.png"), "train", "data.train")),
    ]
    if kind != "folder":
        refusing.append(("x.arrow is not a regular file", lambda: load_table(str(tmp_path / "disk"), "train", "data")))
    for said, read in refusing:
        with pytest.raises(ConfigurationError, match=said):
            read()


@pytest.mark.parametrize("kind", ["fifo", "folder", "circle"])
def test_a_report_leaves_out_what_is_no_file(kind: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    files = [path for path in sorted(run.rglob("*")) if path.is_file()]
    for path in files:
        path.unlink()
        KINDS[kind](path)
    problems: list[str] = []
    read_run(RunDir(run), problems)
    read_pictures(RunDir(run).pictures, [path.name for path in files], problems)
    if kind == "circle":  # like a link to nothing
        return
    for name in ("config.yaml", "metrics.csv", "transcripts.jsonl", "warnings.jsonl", "answers.jsonl", "pictures"):
        assert any(name in problem for problem in problems)
