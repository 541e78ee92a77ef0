"""The commands around training on a GPU: resume, test, predict, doctor and export."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.standin.conftest import ACCELERATORS, Run, assert_same, command, run
from tests.standin.run import main

STEP = ("--trainer.max_steps=1", "--checkpoint.every_n_train_steps=1")


@pytest.fixture(scope="module")
def first_step(data: list[str], tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(tmp_path_factory.mktemp("first") / "run", "cpu", data, *STEP)


def on(device: str, name: str, first_step: Run, data: list[str], folder: Path, *more: str) -> list[str]:
    """Return another command about the weights of the first step."""
    _, *options = command(folder, device, data)
    kept = [option for option in options if not option.startswith("--trainer.limit_val_batches")]
    checkpoint = first_step.folder / "checkpoints" / "last.ckpt"
    return [name, *kept, f"--ckpt_path={checkpoint}", *more]


def test_a_run_resumes_on_the_other_device(first_step: Run, data: list[str], tmp_path: Path) -> None:
    checkpoint = f"--ckpt_path={first_step.folder / 'checkpoints' / 'last.ckpt'}"
    runs = [run(tmp_path / device, device, data, checkpoint) for device in ACCELERATORS]
    assert_same(*runs, 2e-5)
    back = f"--ckpt_path={runs[1].folder / 'checkpoints' / 'last.ckpt'}"
    assert run(tmp_path / "back", "cpu", data, back, "--trainer.max_steps=3").weights.keys() == runs[0].weights.keys()


@pytest.mark.parametrize(
    ("name", "more"),
    [("predict", []), ("test", ["--samples=2", "--budgets=[4]"]), ("filter", ["--reward=iou", "--samples=2"])],
)
def test_answers_are_the_same(name: str, more: list[str], first_step: Run, data: list[str], tmp_path: Path) -> None:
    written = {}
    for device in ACCELERATORS:
        assert main(on(device, name, first_step, data, tmp_path / device, *more)) == 0
        files = sorted(path for path in (tmp_path / device).rglob("*.json*") if path.stat().st_size)
        written[device] = {str(file.relative_to(tmp_path / device)): file for file in files}
    assert written["cpu"].keys() == written["cuda"].keys() != set()
    for file, path in written["cpu"].items():
        if any(kind in file for kind in ("answers", "predictions", "results")):
            assert texts(written["cuda"][file]) == texts(path), file
        elif "success_rates" in file:
            assert written["cuda"][file].read_text() == path.read_text()


def texts(path: Path) -> list[str]:
    """Return all texts in a file of JSON or JSON lines, in order."""
    content = path.read_text()
    lines = content.splitlines() if path.suffix == ".jsonl" else [content]
    found: list[str] = []

    def visit(value: object) -> None:
        if isinstance(value, str):
            found.append(value)
        for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            visit(item)

    for line in lines:
        visit(json.loads(line))
    return found


def test_the_doctor_finds_the_same(data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for device in ACCELERATORS:
        _, *options = command(tmp_path / "run", device, data)
        code = main(["doctor", *options, "--probe=4"])
        found.append((code, [line for line in capsys.readouterr().out.splitlines() if line.startswith("- ")]))
    assert found[0] == found[1]


def test_exported_weights_are_those_of_the_checkpoint(data: list[str], tmp_path: Path) -> None:
    from safetensors.torch import load_file

    done = run(tmp_path / "run", "cuda", data, *STEP)
    exported = [load_file(file) for file in (done.folder / "export").glob("*.safetensors")]
    values = [value for weights in exported for value in weights.values()]
    assert sum(value.numel() for value in values) == sum(
        value.numel() for name, value in done.weights.items() if name != "steps_done"
    )
    assert all(isinstance(value, torch.Tensor) and value.is_cpu for value in values)
