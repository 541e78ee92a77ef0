"""Every YAML opens with what a reader wants to know, and loads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import CSV_ONLY, ROOT

from vrft.__main__ import main

CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_header_names_command_hardware_time_and_result(path: Path) -> None:
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    for name in ("command:", "hardware:", "time:", "result:"):
        assert any(line.startswith(f"# {name}") for line in header), name


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_is_accepted(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", str(path), "--print_config"])
    assert stop.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["model"]["class_path"] in ("vrft.RFT", "vrft.SFT")


@pytest.mark.parametrize(("config", "lora"), [("coco_few_shot", ["--model.policy.lora.r=4"]), ("coco_full", [])])
def test_coco_configs_run_on_the_tiny_policy(
    config: str, lora: list[str], quick_fit: Callable[..., list[str]], tmp_path: Path
) -> None:
    assert main(quick_fit(CSV_ONLY, "--trainer.max_steps=1", "--model.beta=0")) == 0  # draws the scenes
    files = [argument for argument in quick_fit()[3:] if "_size" not in argument]
    small = ["--model.policy.checkpoint=tiny-detection", *lora, "--data.categories=[red, blue]"]
    small += ["--data.shots=1", "--data.batch_size=2", "--data.num_workers=1", "--model.max_completion_length=32"]
    small += ["--task.template=Detect {query}", f"--run_dir={tmp_path}/coco", CSV_ONLY]
    assert main(["fit", "--config", str(ROOT / "configs" / f"{config}.yaml"), *files, *small]) == 0
    assert set(yaml.safe_load((tmp_path / "coco" / "few_shot.json").read_text())) == {"red", "blue"}


def test_digits_config_runs(tmp_path: Path) -> None:
    short = ["--trainer.max_steps=1", f"--data.root={tmp_path}/digits", f"--run_dir={tmp_path}/run", CSV_ONLY]
    assert main(["fit", "--config", str(ROOT / "configs" / "digits.yaml"), "--data.shots=1", *short]) == 0
    summary = yaml.safe_load((tmp_path / "run" / "summary.json").read_text())
    assert list(summary["base"]) == ["accuracy", "valid", "reward"]
    assert summary["base"]["accuracy"] == pytest.approx(0.5, abs=0.02)
