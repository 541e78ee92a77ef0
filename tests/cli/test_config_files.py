"""Files that a config names: their text stays out of messages, and none of them blocks or expands without bounds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.helpers import Command
from vrft.__main__ import main
from vrft.cli.app import VRFTCLI
from vrft.cli.config_files import check_files, hide_contents
from vrft.errors import ConfigurationError
from vrft.utils.yaml_text import RepeatedKey, decode_yaml

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcde", "bcdef", strict=True)
)


@pytest.mark.parametrize("field", ["config", "data", "model.rewards"])
def test_a_message_has_no_text_of_a_file(
    field: str, quick_fit: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "passwd").write_text("root:x:0:0:hidden-one:/root\n- hidden-two\n")
    (tmp_path / "names.yaml").write_text(f"{field}: {tmp_path}/passwd\n" if field != "config" else "[hidden-one\n")
    for option in (f"--{field}={tmp_path}/passwd", f"--config={tmp_path}/names.yaml"):
        assert main(quick_fit(option)) == 2
        said = capsys.readouterr().err
        assert "hidden-" not in said
        assert len(said.splitlines()) == 1


def test_an_error_after_parsing_names_the_image_of_a_list(
    quick_fit: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "train.txt").write_text("absent-image\n")

    def read_data(cli: VRFTCLI) -> None:
        raise ConfigurationError(f"{cli.config.data.init_args.train_annotations}:1: no such file: absent-image.xml")

    monkeypatch.setattr(VRFTCLI, "instantiate_classes", read_data)
    assert main(quick_fit("--data=VocData", f"--data.train_annotations={tmp_path}/train.txt")) == 2
    assert capsys.readouterr().err.endswith(f"vrft: {tmp_path}/train.txt:1: no such file: absent-image.xml\n")


def test_lines_are_hidden_but_not_words_of_the_command(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("abc-123\n--model.beta\n")
    message = "Got value: abc-123, --model.beta"
    command = ["fit", f"--task={{class_path: {tmp_path}/token}}", "--model.beta", "1"]
    assert hide_contents(message, command) == f"Got value: (a line of {tmp_path}/token), --model.beta"


@pytest.mark.parametrize("place", ["--config={}", "--data={}", "--config={folder}/outer.yaml"])
def test_aliases_that_expand_without_bounds_are_refused(place: str, tmp_path: Path) -> None:
    (tmp_path / "bomb.yaml").write_text(BOMB)
    (tmp_path / "outer.yaml").write_text("model: {rewards: bomb.yaml}")
    with pytest.raises(ConfigurationError, match="aliases stand for more than 100000 values"):
        check_files(["fit", place.format(tmp_path / "bomb.yaml", folder=tmp_path)])
    with pytest.raises(ConfigurationError, match="aliases stand for more than 100000 values"):
        check_files(["fit", f"--model={{{', '.join(BOMB.splitlines())}}}"])
    with pytest.raises(ConfigurationError, match="an alias contains itself"):
        check_files(["fit", "--model", "{a: &a [*a]}"])
    check_files(["fit", "--model={a: &a [1], b: *a}"])


@pytest.mark.parametrize("place", ["--config={}", "--data={}", "--config={folder}/outer.yaml"])
def test_keys_that_a_file_or_a_value_has_twice_are_refused(place: str, tmp_path: Path) -> None:
    (tmp_path / "twice.yaml").write_text("beta: 0.04\nname:\n  beta: 1\nbeta: 0\n")
    (tmp_path / "outer.yaml").write_text("model: {rewards: twice.yaml}")
    with pytest.raises(ConfigurationError, match=r"twice\.yaml: line 4: the key 'beta' is in line 1 already$"):
        check_files(["fit", place.format(tmp_path / "twice.yaml", folder=tmp_path)])
    with pytest.raises(ConfigurationError, match="the key 'r' is in line 1 already"):
        check_files(["fit", "--model.policy.lora={r: 2, r: 4}"])


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("a: {beta: 1}\nb: {beta: 2}", id="of-two-mappings"),
        pytest.param("a: &a {beta: 1}\nb: {<<: *a, beta: 2}\nc: {<<: *a, beta: 3}", id="merged-and-overridden"),
        pytest.param("1: a\n'1': b", id="number-and-text"),
    ],
)
def test_keys_that_are_written_once_are_not_refused(text: str) -> None:
    check_files(["fit", "--model", text])


def test_keys_that_are_the_same_number_are_refused() -> None:
    with pytest.raises(RepeatedKey, match="line 2: the key '0x1' is in line 1 already"):
        decode_yaml("1: a\n0x1: b")


def test_special_files_are_refused_before_they_are_opened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "outer.yaml").write_text(f"data: {{train_annotations: {tmp_path}/fifo}}")
    for option in (f"--data={tmp_path}/fifo", f"--config={tmp_path}/outer.yaml", "--data=/dev/zero"):
        with pytest.raises(ConfigurationError, match="is a FIFO, a device or a socket; expected a regular file"):
            check_files(["fit", option])
    assert main(["fit", "--config", f"{tmp_path}/fifo"]) == 2
    assert main(["score", "--task=counting", f"--input={tmp_path}/fifo"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert all(f"{tmp_path}/fifo" in line for line in said)


def test_other_characters_need_a_locale_that_the_parser_reads_as_utf8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in (("plain", "task: {}"), ("outer", "data: inner.yaml"), ("inner", "classes: [Käfer]")):
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    check_files(["fit", f"--config={tmp_path}/outer.yaml"])
    monkeypatch.setattr("locale.getpreferredencoding", lambda *_: "cp1252")
    check_files(["fit", f"--config={tmp_path}/plain.yaml"])
    with pytest.raises(ConfigurationError, match=r"inner\.yaml: .* cp1252 here; set PYTHONUTF8=1"):
        check_files(["fit", f"--config={tmp_path}/outer.yaml"])
