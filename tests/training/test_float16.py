"""Training in float16: gradients of float32, and steps whose scaled gradients overflow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from safetensors.torch import save_file
from torch import nn

from tests.helpers import CSV_ONLY, Command, callback
from tests.helpers.ranks import Ranks
from tests.training.test_skipped_steps import breaks, logged
from vrft.__main__ import main
from vrft.policy.pretrained import exact_dtype
from vrft.training.loss_scale import LossScale
from vrft.training.module import VisionModule

SHORT = (CSV_ONLY, "--data.batch_size=2", "--trainer.limit_val_batches=0", "--trainer.max_steps=3")
EACH_STEP = ("--checkpoint.every_n_train_steps=1", "--checkpoint.save_top_k=-1")
OVERFLOW = breaks(what="gradient", first=1, last=1)


class Enlarges(Callback):
    """Makes the gradients of the last rank overflow in the second step."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, VisionModule)
        second = pl_module.steps_done == 1
        scale = 2.0**40 if second and trainer.global_rank == trainer.world_size - 1 else 2.0**16
        pl_module.optimization.loss_scale.load_state_dict(
            pl_module.optimization.loss_scale.state_dict() | {"scale": scale}
        )


def supervised(quick_fit: Command, dtype: str, folder: Path, *more: str) -> Path:
    """Run supervised steps in a dtype and return the run's folder."""
    short = [option for option in quick_fit(*SHORT)[3:] if not option.startswith("--run_dir")]
    run = ["fit", "--config", "quickstart_sft", *short, f"--model.policy.dtype={dtype}", f"--run_dir={folder}", *more]
    assert main(run) == 0
    return folder


def last(folder: Path) -> Any:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def test_losses_and_gradients_are_those_of_float32(quick_fit: Command, tmp_path: Path) -> None:
    half, whole = (supervised(quick_fit, dtype, tmp_path / dtype) for dtype in ("float16", "float32"))
    for name in ("train/loss", "train/grad_norm"):
        assert logged(half, name)[0] == pytest.approx(logged(whole, name)[0], rel=2e-3)
        assert logged(half, name) == pytest.approx(logged(whole, name), rel=0.05)  # rounding has changed the weights
    assert logged(half, "train/loss_scale") == [2**16] * 3
    assert "loss_scale" not in last(whole)


def test_an_overflow_halves_the_scale_and_a_resumed_run_is_the_same(quick_fit: Command, tmp_path: Path) -> None:
    run = supervised(quick_fit, "float16", tmp_path / "run", OVERFLOW, *EACH_STEP)
    assert logged(run, "train/overflowed_steps") == [0, 1, 0, 0]
    assert logged(run, "train/skipped_steps") == [0, 0, 0, 0]
    assert logged(run, "train/loss_scale") == [2**16, 2**15, 2**15, 2**15]
    assert not (run / "faults.jsonl").exists()
    (second,) = (run / "checkpoints").glob("*step=2.ckpt")
    again = supervised(quick_fit, "float16", tmp_path / "resumed", f"--ckpt_path={second}")
    assert last(again)["loss_scale"] == last(run)["loss_scale"]
    assert last(again)["loss_scale"]["_growth_tracker"] == 2  # the third step, and the one before the checkpoint
    for name, weight in last(run)["state_dict"].items():
        assert torch.equal(last(again)["state_dict"][name], weight), name


def test_sharded_ranks_overflow_together(quick_fit: Command, two_ranks: Ranks, tmp_path: Path) -> None:
    two = ["--trainer.strategy=fsdp2", "--trainer.devices=2", "--trainer.accelerator=cpu", "--trainer.max_steps=2"]
    run = ["fit", "--config", "quickstart_sft", *quick_fit(*SHORT, "--model.policy.dtype=float16", *two)[3:]]
    two_ranks.run([*run, callback(Enlarges)], cwd=tmp_path)
    assert logged(tmp_path / "run", "train/overflowed_steps") == [0, 1, 0]
    assert logged(tmp_path / "run", "train/loss_scale") == [2**16, 2**15, 2**16]


@pytest.mark.parametrize(
    ("start", "gradient", "losses_finite", "overflowed", "then"),
    [
        (2.0**16, 1.0, True, False, 2.0**16),
        (2.0**16, torch.inf, True, True, 2.0**15),
        (2.0**16, torch.nan, False, False, 2.0**16),
        (1.0, torch.inf, True, False, 1.0),
    ],
    ids=["finite", "overflow", "the loss is not finite", "the scale can't be the cause"],
)
def test_only_an_overflow_changes_the_scale(
    start: float, gradient: float, losses_finite: bool, overflowed: bool, then: float
) -> None:
    module: Any = nn.Linear(1, 1)
    module.device = torch.device("cpu")
    scale, optimizer = LossScale(module, torch.float16), torch.optim.SGD(module.parameters())
    scale.load_state_dict(scale.state_dict() | {"scale": start})
    assert scale.scaled(torch.ones(())) == start
    module.bias.grad = torch.full((1,), gradient * start)
    scale.unscale(optimizer)
    finite = bool(module.bias.grad.isfinite())
    assert not finite or module.bias.grad == gradient
    assert scale.update(finite, losses_finite) is overflowed
    assert scale.scale == then
    scale.unscale(optimizer)  # the next step


@pytest.mark.parametrize(
    ("stored", "dtype", "read"),
    [
        (torch.bfloat16, torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float16, torch.float16),
        (torch.bfloat16, torch.float16, torch.float32),
        (torch.float16, torch.bfloat16, torch.float32),
    ],
)
def test_weights_that_train_are_read_without_loss(
    stored: torch.dtype, dtype: torch.dtype, read: torch.dtype, tmp_path: Path
) -> None:
    save_file({"weight": torch.ones(1, dtype=stored), "count": torch.ones(1).long()}, tmp_path / "model.safetensors")
    assert exact_dtype(str(tmp_path), dtype) == read
