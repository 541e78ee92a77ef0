"""Text as it is shown, and files that are no files."""

from __future__ import annotations

import io
import logging
import os
import socket
import sys
import warnings
from pathlib import Path

import pytest
from lightning.fabric.utilities.warnings import _custom_format_warning

from vrft.__main__ import main
from vrft.cli.harmless import BARS, silence_harmless, tidy_output
from vrft.cli.parser_errors import message_lines
from vrft.data.files import read_bytes
from vrft.errors import ConfigurationError
from vrft.loggers import markdown_table
from vrft.utils.display import table_cell, visible
from vrft.utils.regular_files import read_regular

HOSTILE = [
    ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
    ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
    ("\x9b2J", r"\x9b2J"),
    ("abc\u202edcba", r"abc\u202edcba"),
    ("\u2066a\u2069", r"\u2066a\u2069"),
    ("cat\ud800", r"cat\ud800"),
    ("\ufeffcat\u200b", r"\ufeffcat\u200b"),
    ("\U000e0041", r"\U000e0041"),
    ("a\xadb\u034f\u3164\u180e\U000e0101", r"a\xadb\u034f\u3164\u180e\U000e0101"),
    ("over\rwrite\x08", r"over\x0dwrite\x08"),
    ("\N{CAT FACE} Straße 猫\tb\nc", "\N{CAT FACE} Straße 猫\tb\nc"),
]


@pytest.mark.parametrize(("text", "shown"), HOSTILE)
def test_no_character_controls_the_terminal_or_hides(text: str, shown: str) -> None:
    assert visible(text) == shown
    visible(text).encode()
    assert "\x1b" not in message_lines(ConfigurationError(text))
    assert "\x1b" not in markdown_table(["name"], [[text]])


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_warnings_and_log_records_are_shown_without_controls(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    for name in BARS:
        monkeypatch.setenv(name, "1")
    factory = logging.getLogRecordFactory()
    try:
        tidy_output()
        logging.getLogger("somebody").warning("a %s", "\x1b[1;31mred\x1b[0m \x1b[2J")
        assert warnings.formatwarning("\x1b[31ma\x1b[2J", UserWarning, "f.py", 1, "") == "warning: a\\x1b[2J\n"
        for argument in ({"a": 1}, Unprintable()):
            logging.getLogger("nobody").makeRecord("nobody", 30, "f.py", 1, "%(foo)s %s", (argument,), None)
    finally:
        logging.setLogRecordFactory(factory)
    assert caplog.messages == [r"a red \x1b[2J"]


def test_a_warning_is_shown_once_and_libraries_draw_no_bars_in_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    for name in BARS:
        monkeypatch.setenv(name, "0")  # so that it is restored after the test
    for name in (BARS[0], BARS[2]):
        monkeypatch.delenv(name)
    factory = logging.getLogRecordFactory()
    try:
        tidy_output()
    finally:
        logging.setLogRecordFactory(factory)
    shown = [warnings.formatwarning(text, FutureWarning, "f.py", line, "x = 1") for line, text in enumerate("aba")]
    assert shown == ["warning: a\n", "warning: b\n", ""]
    assert [os.environ[name] for name in BARS] == ["1", "0", "1"]


@pytest.mark.parametrize("called", [True, False])
def test_a_program_that_calls_a_command_keeps_its_output(called: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    monkeypatch.setattr(sys, "argv", ["vrft", "report", "nowhere"])
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setenv(BARS[0], "0")
    for name in BARS[1:]:
        monkeypatch.setenv(name, "0")  # so that it is restored after the test
        monkeypatch.delenv(name)
    factory = logging.getLogRecordFactory()

    def state() -> list[object]:
        return [warnings.formatwarning, logging.getLogRecordFactory(), *map(os.environ.get, BARS)]

    before = state()
    try:
        assert main(["report", "nowhere"] if called else None) == 2
        same = [one == other for one, other in zip(before, state(), strict=True)]
    finally:
        logging.setLogRecordFactory(factory)
    assert same == ([True] * 5 if called else [False, False, True, False, False])


def test_a_warning_of_a_users_code_names_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    own = tmp_path / "mine.py"
    own.write_text("")
    silence_harmless()
    places = (str(own), io.__file__, pytest.__file__, sys.modules[main.__module__].__file__, "<stdin>")
    shown = [warnings.formatwarning(str(i), UserWarning, str(place), 7, "") for i, place in enumerate(places)]
    assert shown == ["warning: mine.py:7: 0\n", *(f"warning: {i}\n" for i in range(1, 5))]
    assert warnings.formatwarning("0", UserWarning, str(own), 7) == ""


def test_warnings_of_lightning_are_shown_like_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warnings, "formatwarning", _custom_format_warning)  # set by its import
    silence_harmless()
    shown = warnings.formatwarning("\x1b[31mapi_key=abcdefgh", UserWarning, "lightning/trainer.py", 1, "x = 1")
    assert shown == "warning: api_key=(hidden)\n"


@pytest.mark.parametrize("name", ["=1+1", "+cmd", "-2", "@SUM(A1)", "\t=1", "\r=1", " =1"])
def test_no_cell_is_a_formula(name: str) -> None:
    assert table_cell(name).startswith("'")


def test_a_category_stays_as_it_is() -> None:
    assert table_cell("traffic light") == "traffic light"


def test_a_lone_surrogate_can_be_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding="ascii"))
    assert main(["--version"]) == 0
    print("cat\ud800 é", flush=True)
    assert written.getvalue().endswith(rb"cat\ud800 \xe9" + b"\n")


def test_special_files_are_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket has at most 108 bytes
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        (tmp_path / "circle").symlink_to(tmp_path / "circle")
        for path in (tmp_path / "fifo", tmp_path / "socket", tmp_path / "circle", tmp_path, Path("/dev/zero")):
            with pytest.raises(ConfigurationError, match=f"{path}: can't be read: "):
                read_bytes(path)
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("file")
    assert read_regular(tmp_path / "link") == b"abc"
