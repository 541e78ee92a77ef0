"""Two ranks that share the stand-in and exchange over gloo train as one rank on the CPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers import ROOT
from tests.standin.conftest import command, run

GLOO = {
    "ddp": "{class_path: lightning.pytorch.strategies.DDPStrategy, init_args: {process_group_backend: gloo}}",
    "fsdp2": "{class_path: vrft.training.strategies.FSDP2Strategy, init_args: {process_group_backend: gloo}}",
}
SETTINGS = {"full": (), "lora": ("--model.policy.lora.r=4", "--model.optimizer.lr=0.004")}


def start(folder: Path, *arguments: str) -> dict[str, torch.Tensor]:
    """Run a command in processes of its own and return the weights of its last checkpoint."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.standin.run", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True, map_location="cpu")["state_dict"]


@pytest.fixture(scope="module")
def one_rank(data: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, torch.Tensor]]:
    """Return the weights of runs of one rank on the CPU, by settings."""
    return {
        name: run(tmp_path_factory.mktemp(name), "cpu", data, "--data.batch_size=2", *settings).weights
        for name, settings in SETTINGS.items()
    }


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("strategy", GLOO)
def test_two_ranks_train_as_one(
    strategy: str, settings: str, one_rank: dict[str, dict[str, torch.Tensor]], data: list[str], tmp_path: Path
) -> None:
    expected = one_rank[settings]
    ranks = ("--trainer.devices=2", f"--trainer.strategy={GLOO[strategy]}", "--data.batch_size=1")
    found = start(tmp_path / "two", *command(tmp_path / "two", "cuda", data, *ranks, *SETTINGS[settings]))
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert (found[name] - weight).abs().max() < 3e-5, name
