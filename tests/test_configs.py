"""Every YAML has a header with command, hardware, time and result, and loads."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from pydoc import locate
from typing import Any

import pytest
import yaml

from tests.helpers import CSV_ONLY
from tests.helpers.formats import (
    coco_tables,
    write_aircraft,
    write_cars,
    write_flowers,
    write_lvis,
    write_pets,
    write_reason_seg,
)
from vrft.__main__ import main
from vrft.cli.named_configs import CONFIGS as FOLDER
from vrft.cli.named_configs import named_config

CONFIGS = sorted(path for folder in (".", "tiny", "recipes") for path in (FOLDER / folder).glob("*.yaml"))
FRAGMENTS = sorted([*(FOLDER / "data").glob("*.yaml"), *(FOLDER / "model").glob("*.yaml")])
ENGINES = sorted((FOLDER / "engine").glob("*.yaml"))
OPTIMIZERS = sorted((FOLDER / "optimizer").glob("*.yaml"))
CARDS = sorted((FOLDER / "gpu").glob("*.yaml"))
HARDWARE = sorted((FOLDER / "trainer").glob("*.yaml"))
LAUNCHED = {"LOCAL_WORLD_SIZE": "4", "GROUP_WORLD_SIZE": "2", "SLURM_NTASKS_PER_NODE": "4", "SLURM_NNODES": "2"}
"""Environment of a process that torchrun or SLURM starts on two machines with four GPUs each."""


pytestmark = pytest.mark.usefixtures("_no_runs", "_forked_readers")


def test_every_fragment_is_named_by_a_config() -> None:
    named = {value for path in CONFIGS for value in yaml.safe_load(path.read_text()).values() if isinstance(value, str)}
    assert {f"{path.parent.name}/{path.name}" for path in FRAGMENTS} == {n for n in named if n.endswith(".yaml")}


@pytest.mark.parametrize("path", [*CONFIGS, *HARDWARE, *ENGINES, *OPTIMIZERS, *CARDS], ids=lambda path: path.stem)
def test_header_names_command_hardware_time_and_result(path: Path) -> None:
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    for name in ("command:", "hardware:", "time:", "result:"):
        assert any(line.startswith(f"# {name}") for line in header), name


def test_rewards_are_the_defaults_of_the_task() -> None:
    """`reward_search.py` has searched these sums."""
    checked = 0
    for path in CONFIGS:
        config = yaml.safe_load(path.read_text())
        if path.parent.name == "tiny":  # stages of built-in policies, with rewards of their own
            continue
        model = config["model"]
        model = yaml.safe_load((FOLDER / model).read_text()) if isinstance(model, str) else model
        task = build(**config["task"])
        rewards = {name: build(**setting) for name, setting in model["init_args"]["rewards"].items()}
        assert {name: (type(reward), vars(reward)) for name, reward in rewards.items()} == {
            name: (type(reward), vars(reward)) for name, reward in task.rewards().items()
        }, path
        checked += 1
    assert checked > 20


def build(class_path: str, init_args: dict[str, Any] | None = None) -> Any:
    return locate(class_path)(**init_args or {})  # type: ignore[operator]


def printed(capsys: pytest.CaptureFixture[str], *configs: Path) -> dict[str, Any]:
    with pytest.raises(SystemExit) as stop:
        main(["fit", *(f"--config={path}" for path in configs), "--print_config"])
    assert stop.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.slow(seconds=0.4)
@pytest.mark.parametrize(("path", "hardware"), [*zip(CONFIGS, cycle(HARDWARE))], ids=lambda path: path.stem)
def test_config_is_accepted_on_any_hardware(path: Path, hardware: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = printed(capsys, path, hardware)
    assert found["model"]["class_path"] in ("vrft.RFT", "vrft.SFT")
    assert found["checkpoint"]["dirpath"] == f"{found['run_dir']}/checkpoints"
    assert found["run_dir"] in (f"runs/{path.stem}", f"runs/tiny/{path.stem}")
    for name, value in yaml.safe_load(path.read_text()).get("trainer", {}).items():
        if name == "accelerator":  # that of the later config
            value = yaml.safe_load(hardware.read_text())["trainer"].get(name, value)
        assert outline(found["trainer"][name]) == outline(value), name


def outline(value: Any) -> Any:
    """Return a value with classes replaced by their names."""
    if isinstance(value, list):
        return [outline(entry) for entry in value]
    return value["class_path"].rpartition(".")[2] if isinstance(value, dict) else value


@pytest.mark.slow(seconds=2)
def test_a_hardware_config_changes_nothing_else(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)
    experiment = named_config("quickstart")
    alone = printed(capsys, experiment)
    for hardware in HARDWARE:
        there = printed(capsys, experiment, hardware)
        settings = yaml.safe_load(hardware.read_text())["trainer"]
        if hardware.stem in ("multi_node", "slurm"):
            settings |= {"devices": 4, "num_nodes": 2}
        assert there == alone | {"trainer": alone["trainer"] | settings}, hardware.stem


def test_hardware_and_experiment_configs_set_different_fields() -> None:
    experiments = [yaml.safe_load(path.read_text()) for path in CONFIGS]
    said = {name for content in experiments for name in content.get("trainer", {})}
    assert {"callbacks", "max_steps", "val_check_interval"} <= said
    for path in HARDWARE:
        content = yaml.safe_load(path.read_text())
        assert content.keys() == {"trainer"}
        assert content["trainer"].keys() & said <= {"accelerator"}, path.stem


def test_only_the_built_in_policies_are_bound_to_the_cpu() -> None:
    for path in CONFIGS:
        content = yaml.safe_load(path.read_text())
        built_in = "checkpoint: tiny-" in path.read_text() or path.parent.name == "tiny"
        assert content.get("trainer", {}).get("accelerator") == ("cpu" if built_in else None), path.stem


def coco_files(folder: Path, *parts: str) -> list[str]:
    """Write COCO files of a few scenes and return arguments for them."""
    arguments = []
    for start, part in enumerate(parts):
        tables, _ = coco_tables(folder / part, part, 4, 1 + 1000 * start)
        (folder / f"{part}.json").write_text(json.dumps(tables))
        arguments += [f"--data.{part}_annotations={folder}/{part}.json", f"--data.{part}_images={folder}/{part}"]
    return arguments


def lvis_files(folder: Path, *parts: str) -> list[str]:
    write_lvis(folder)
    files = [(part, f"--data.{part}_annotations={folder}/lvis_{part}.json") for part in parts]
    return [argument for part, file in files for argument in (file, f"--data.{part}_images={folder}")]


TWO = "[red, green]"
EXPERIMENTS: dict[str, tuple[Callable[[Path], list[str]], str]] = {
    "flowers": (lambda folder: [f"--data.root={write_flowers(folder)}", "--data.shots=1"], "accuracy"),
    "pets": (lambda folder: [f"--data.root={write_pets(folder)}", "--data.shots=1"], "accuracy"),
    "aircraft": (lambda folder: [f"--data.root={write_aircraft(folder)}", "--data.shots=1"], "accuracy"),
    "cars": (lambda folder: [f"--data.root={write_cars(folder)}", "--data.shots=1"], "accuracy"),
    "coco_few_shot": (
        lambda folder: [*coco_files(folder, "train", "val"), f"--data.categories={TWO}", "--data.shots=1"],
        "mAP",
    ),
    "coco_open_vocabulary": (
        lambda folder: [
            *coco_files(folder, "train", "val"),
            "--data.categories=[red]",
            "--data.val_categories=[green]",
        ],
        "mAP",
    ),
    "lvis_few_shot": (lambda folder: [*lvis_files(folder, "train", "val"), f"--data.categories={TWO}"], "mAP"),
    "lvis_open_vocabulary": (
        lambda folder: [
            *coco_files(folder, "train"),
            *lvis_files(folder, "val"),
            "--data.categories=[red]",
            "--data.val_categories=[green]",
        ],
        "mAP",
    ),
    "lisa": (lambda folder: [f"--data.root={write_reason_seg(folder)}"], "reward"),
    "custom_coco": (
        lambda folder: [
            *coco_files(folder, "train"),
            "--data.val_fraction=0.3",
            f"--data.categories={TWO}",
            "--data.shots=1",
        ],
        "mAP",
    ),
}


SFT = [f"{name}_sft" for name in ("flowers", "coco_few_shot", "lisa")]
"""SFT configs that run: one for each config in configs/model, which is all that they add to their RFT config."""


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_sft_config_differs_from_its_rft_config_in_the_model_and_the_reasoning(name: str) -> None:
    rft, sft = (yaml.safe_load((FOLDER / f"{name}{kind}.yaml").read_text()) for kind in ("", "_sft"))
    assert sft.pop("model") == rft.pop("model").replace("/rft_", "/sft_")
    assert sft["task"].pop("init_args") == {"reasoning": False}
    assert sft == rft


def test_every_sft_model_runs() -> None:
    models = {yaml.safe_load((FOLDER / f"{name}.yaml").read_text())["model"] for name in SFT}
    assert models == {f"model/{path.name}" for path in (FOLDER / "model").glob("sft_*.yaml")}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*EXPERIMENTS, *SFT])
def test_experiments_run_on_the_tiny_policy(name: str, tmp_path: Path) -> None:
    write, score = EXPERIMENTS[name.removesuffix("_sft")]
    files = write(tmp_path / "files")
    small = ["--model.policy.checkpoint=tiny-detection", "--model.policy.dtype=float32", "--model.policy.lora.r=2"]
    small += ["--data.batch_size=2", "--data.num_workers=0", "--model.max_completion_length=24", CSV_ONLY]
    small += ["--model.policy.max_pixels=3136", "--trainer.max_steps=1", f"--run_dir={tmp_path}/run"]
    assert main(["fit", "--config", name, *files, *small]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert score in summary["base"]
    assert (tmp_path / "run" / "few_shot.json").exists() == any("shots" in argument for argument in files)


@pytest.mark.slow
def test_the_config_with_a_small_optimizer_runs_on_the_tiny_policy(tmp_path: Path) -> None:
    files = [*coco_files(tmp_path, "train", "val"), f"--data.categories={TWO}", "--data.shots=1"]
    small = ["--model.policy.checkpoint=tiny-detection", "--data.batch_size=2", "--data.num_workers=1"]
    small += ["--trainer.max_steps=1", "--model.max_completion_length=24", f"--run_dir={tmp_path}/run", CSV_ONLY]
    assert main(["fit", "--config", "coco_full", *files, *small]) == 0
    assert {*json.loads((tmp_path / "run" / "few_shot.json").read_text())} == {"red", "green"}


@pytest.mark.slow(seconds=5)
def test_digits_config_runs(tmp_path: Path) -> None:
    short = [f"--data.root={tmp_path}/digits", "--data.shots=1", CSV_ONLY, "--trainer.max_steps=1"]
    command = ["--config", "digits", *short]
    assert main(["fit", *command, f"--run_dir={tmp_path}/run", "--trainer.limit_val_batches=0"]) == 0
    assert main(["validate", *command, f"--run_dir={tmp_path}/base"]) == 0
    with next((tmp_path / "base" / "logs").glob("*/metrics.csv")).open() as file:
        (scores,) = csv.DictReader(file)
    assert {"val/accuracy", "val/class_accuracy", "val/valid", "val/reward"} <= scores.keys()
    assert float(scores["val/accuracy"]) == pytest.approx(0.5, abs=0.02)
