"""Configs of the package are found by name, from any folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from vrft.__main__ import main
from vrft.cli.named_configs import CONFIGS, config_names, find_configs
from vrft.errors import ConfigurationError


@pytest.fixture
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("_elsewhere")
@pytest.mark.parametrize("joined", [True, False])
def test_a_name_is_replaced_by_the_path_in_the_package(joined: bool) -> None:
    options = ["--config=trainer/cpu"] if joined else ["--config", "trainer/cpu"]
    found = find_configs(["fit", *options, "--model.beta=0"])
    assert "=".join(found[1:-1]) == f"--config={CONFIGS}/trainer/cpu.yaml"
    assert (found[0], found[-1]) == ("fit", "--model.beta=0")


@pytest.mark.usefixtures("_elsewhere")
@pytest.mark.parametrize(
    ("name", "is_file"),
    [("quickstart", True), ("quickstart.yaml", True), ("configs/quickstart.yaml", True), ("quickstart", False)],
    ids=["file", "suffix", "path", "a folder is no config"],
)
def test_an_existing_file_wins(name: str, is_file: bool) -> None:
    path = Path(name)
    path.parent.mkdir(exist_ok=True)
    path.write_text("trainer: {max_steps: 7}") if is_file else path.mkdir()
    assert find_configs(["fit", "--config", name])[2] == (name if is_file else f"{CONFIGS}/quickstart.yaml")


@pytest.mark.usefixtures("_elsewhere")  # without runs
@pytest.mark.parametrize(
    "name",
    ["../configs/quickstart", f"{CONFIGS}/quickstart", "trainer", "", "quickstart.yaml.yaml", "runs/quickstart", "\0"],
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="no config of this name"):
        find_configs(["fit", f"--config={name}"])


@pytest.mark.usefixtures("_elsewhere")
@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("flowers.yaml", "flowers"),
        ("flowers.yml", "flowers"),
        ("./flowers", "flowers"),
        ("configs/flowers", "flowers"),
        ("configs/flowers.yaml", "flowers"),
        ("mine/flowers.yaml", "flowers"),
        ("trainer/ddp.yaml", "trainer/ddp"),
        ("configs/trainer/ddp.yaml", "trainer/ddp"),
    ],
)
def test_a_missing_file_is_not_replaced_by_a_config_of_the_package(path: str, name: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"no such file.*: {path} \(did you mean --config {name}\?\)"):
        find_configs(["fit", "--config", path])


@pytest.mark.usefixtures("_elsewhere")
def test_names_compose_with_files_and_their_relative_paths(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.yaml").write_text("trainer: {max_steps: 7}")
    configs = ("coco_few_shot", "trainer/ddp", "mine.yaml")
    with pytest.raises(SystemExit):
        main(["fit", *(f"--config={name}" for name in configs), "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["run_dir"] == "runs/coco_few_shot"
    assert printed["data"]["class_path"] == "vrft.data.CocoData"  # of data/coco_few_shot.yaml, beside the config
    assert (printed["trainer"]["strategy"], printed["trainer"]["max_steps"]) == ("ddp", 7)


def test_every_yaml_of_the_folder_has_a_name() -> None:
    paths = {str(path.relative_to(CONFIGS))[:-5] for path in CONFIGS.glob("**/*.yaml")}
    assert {*config_names()} == {path for path in paths if not path.startswith(("data/", "model/"))}
    assert {"quickstart", "recipes/few_labels", "trainer/cpu", "engine/vllm"} <= {*config_names()}


@pytest.mark.usefixtures("_elsewhere")
@pytest.mark.parametrize(("name", "quoted"), [("mine.yaml", "mine.yaml"), ("my config.yaml", "'my config.yaml'")])
def test_the_command_in_a_copy_names_the_copy(name: str, quoted: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs", "copy", "quickstart", name]) == 0
    assert capsys.readouterr().out == f"wrote {name}; pass it with --config {quoted}\n"
    assert f"# command:  python -m vrft fit --config {quoted}\n" in Path(name).read_text()


@pytest.mark.usefixtures("_elsewhere")
@pytest.mark.parametrize("name", config_names())
def test_a_copy_holds_the_parts_of_a_config(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs", "copy", name]) == 0
    path = Path(f"{name.rpartition('/')[2]}.yaml")
    assert capsys.readouterr().out == f"wrote {path}; pass it with --config {path}\n"
    source = CONFIGS / f"{name}.yaml"
    expected = yaml.safe_load(source.read_text())
    for field, value in expected.items():
        if isinstance(value, str) and value.endswith(".yaml"):
            expected[field] = yaml.safe_load((source.parent / value).read_text())
    text = path.read_text()
    assert yaml.safe_load(text) == expected
    assert f"--config {name} " not in f"{text} ".replace("\n", " ")


@pytest.mark.usefixtures("_elsewhere")
def test_a_copied_experiment_is_the_same_experiment(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs", "copy", "coco_few_shot", "mine.yaml"]) == 0
    printed = []
    for config in ("coco_few_shot", "mine.yaml"):
        capsys.readouterr()
        with pytest.raises(SystemExit):
            main(["fit", "--config", config, "--run_dir=run", "--print_config"])
        printed.append(yaml.safe_load(capsys.readouterr().out))
    assert printed[0] == printed[1]


@pytest.mark.usefixtures("_elsewhere")
def test_a_copy_overwrites_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("folder").mkdir()
    assert main(["configs", "copy", "quickstart", "folder"]) == 0
    assert main(["configs", "copy", "quickstart", "folder"]) == 2
    assert main(["configs", "copy", "quickstart", "absent/mine.yaml"]) == 2
    assert main(["configs", "copy", "quikstart"]) == 2
    assert main(["configs", "show"]) == 2
    errors = capsys.readouterr().err.splitlines()
    reasons = ("folder/quickstart.yaml exists already", "can't write to absent/mine.yaml", "quickstart?", "a NAME")
    assert len(errors) == len(reasons)
    assert all(reason in error for reason, error in zip(reasons, errors, strict=True))
    assert [path.name for path in tmp_path.rglob("*.yaml")] == ["quickstart.yaml"]


def test_the_list_has_a_line_for_each_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line.split()[0] for line in lines) == config_names()
    assert all(len(line.split()) > 3 for line in lines)
