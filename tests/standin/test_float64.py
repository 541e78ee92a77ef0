"""No step of a command computes in float64 on the device, which Apple's GPUs lack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from tests.standin.conftest import command
from tests.standin.run import main

SETTINGS = {
    "rft": ("--model.policy.dtype=float32", "--trainer.limit_val_batches=1", "--trainer.max_steps=1"),
    "lora, truncated": (
        "--model.policy.dtype=float32",
        "--model.policy.lora.r=4",
        "--model.top_p=0.9",
        "--model.min_p=0.1",
    ),
}


class NoFloat64(TorchFunctionMode):
    """Raises TypeError for each function of torch that returns float64 on the device, as on MPS."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor) and value.is_cuda and value.dtype == torch.float64:
                raise TypeError(f"Cannot convert to float64 ({func})")
        return result


def test_the_mode_refuses_float64() -> None:
    with NoFloat64(), pytest.raises(TypeError, match="float64"):
        torch.ones(2, device="cuda").double()


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_training_and_evaluation_need_no_float64(settings: tuple[str, ...], data: list[str], tmp_path: Path) -> None:
    with NoFloat64():
        assert main(command(tmp_path / "run", "cuda", data, *settings)) == 0


@pytest.mark.parametrize("name", ["doctor", "predict"])
def test_other_commands_need_no_float64(name: str, data: list[str], tmp_path: Path) -> None:
    _, *options = command(tmp_path / "run", "cuda", data)
    probe = ["--probe=4"] if name == "doctor" else []
    kept = [option for option in options if not option.startswith("--trainer.limit_val_batches") or name == "doctor"]
    with NoFloat64():
        main([name, *kept, *probe])
