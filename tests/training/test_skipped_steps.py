"""NaN and infinities: all ranks skip the step, it is counted and shown, and a run that only skips ends."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from tests.helpers import CSV_ONLY, UNJUDGED, Command, callback
from tests.helpers.ranks import Ranks
from vrft.__main__ import main
from vrft.training.module import VisionModule

SMALL = ("--data.batch_size=2", "--model.num_generations=2", "--model.max_completion_length=24")
CALLS = {"reward": 0}


class Breaks(Callback):
    """Makes the `gradient` infinite, or a log-probability of the `engine` NaN, in steps `first` to `last`."""

    def __init__(self, what: str, first: int = 0, last: int = 1000, rank: int = 0) -> None:
        self.what, self.steps, self.rank = what, range(first, last + 1), rank

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, VisionModule)
        if int(pl_module.steps_done) not in self.steps or trainer.global_rank != self.rank:
            return
        parameter = next(parameter for parameter in pl_module.parameters() if parameter.requires_grad)
        if self.what == "gradient":
            hook = parameter.register_hook(lambda gradient: gradient * math.inf)
            self.undo: Callable[[], None] = hook.remove
        elif self.what == "engine":
            generate = pl_module.engine.generate

            def spoiled(*args: Any, **kwargs: Any) -> Any:
                rollout = generate(*args, **kwargs)
                rollout.log_probs[1, 0] = math.nan
                return rollout

            pl_module.engine.generate = spoiled  # type: ignore[method-assign]
            self.undo = lambda: setattr(pl_module.engine, "generate", generate)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, VisionModule)
        if int(pl_module.steps_done) - 1 in self.steps and trainer.global_rank == self.rank:
            self.undo()
        assert trainer.optimizers[0].param_groups[0]["params"][0].grad is None


def breaks(**settings: object) -> str:
    return callback(Breaks, **settings)


def nan_now_and_then(**_: object) -> float:
    """Return NaN for the third completion and varying numbers for the others."""
    CALLS["reward"] += 1
    return math.nan if CALLS["reward"] == 3 else CALLS["reward"] % 7 / 7


def logged(folder: Path, name: str) -> list[float]:
    with (folder / "logs" / "version_0" / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row[name]]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_nan_reward_skips_the_step_and_names_the_completion(
    quick_fit: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reward = f"{{class_path: FunctionReward, init_args: {{function: {__name__}.nan_now_and_then}}}}"
    monkeypatch.setitem(CALLS, "reward", 0)
    more = [f"--model.rewards.own={reward}", UNJUDGED, "--transcripts.every_n_rollouts=1"]
    with pytest.warns(UserWarning, match="returned nan; expected a finite score"):
        assert main(quick_fit(CSV_ONLY, *SMALL, *more)) == 0
    assert logged(tmp_path / "run", "train/skipped_steps") == [1, 0, 0]  # the two configured steps are made
    assert all(math.isfinite(value) for value in logged(tmp_path / "run", "train/reward"))
    (fault,) = lines(tmp_path / "run" / "faults.jsonl")
    assert (fault["rollout"], fault["generation"], fault["reward"], fault["rewards"]["own"]) == (1, 0, None, None)
    third = lines(tmp_path / "run" / "transcripts.jsonl")[2]
    assert fault == {"finite": False} | {name: third[name] for name in fault if name != "finite"}


@pytest.mark.parametrize(("what", "count"), [("gradient", 4), ("engine", 1)])
def test_other_faults_name_the_completion_or_all_completions_of_the_step(
    what: str, count: int, quick_fit: Command, tmp_path: Path
) -> None:
    more = breaks(what=what, first=1, last=1), UNJUDGED, "--model.num_iterations=2", "--trainer.max_steps=4"
    assert main(quick_fit(CSV_ONLY, *SMALL, *more)) == 0
    assert logged(tmp_path / "run", "train/skipped_steps") == [0, 2, 0]
    faults = lines(tmp_path / "run" / "faults.jsonl")
    assert len(faults) == count
    assert {(fault["rollout"], fault["finite"]) for fault in faults} == {(2, what == "gradient")}


def test_a_run_without_finite_steps_saves_and_ends(
    quick_fit: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit = quick_fit(CSV_ONLY, *SMALL, "--trainer.max_steps=3", "--skipped_steps.max_in_a_row=2")
    assert main([*fit, breaks(what="gradient", first=1)]) == 1
    output = capsys.readouterr().out
    assert "stopped: no finite gradient in 2 steps in a row, see faults.jsonl\n" in output
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 1
    assert {fault["rollout"] for fault in lines(tmp_path / "run" / "faults.jsonl")} == {2, 3}
    assert not (tmp_path / "run" / "summary.json").exists()
    assert main([*fit, "--ckpt_path=last"]) == 0  # the cause is gone
    assert (tmp_path / "run" / "summary.json").exists()


def test_a_supervised_step_names_its_samples(quick_fit: Command, tmp_path: Path) -> None:
    config = ["fit", "--config", "quickstart_sft"]
    fit = config + quick_fit(CSV_ONLY, UNJUDGED, "--data.batch_size=2", breaks(what="gradient", last=0))[3:]
    assert main(fit) == 0
    assert logged(tmp_path / "run", "train/skipped_steps") == [1, 0, 0]
    assert [fault["rollout"] for fault in lines(tmp_path / "run" / "faults.jsonl")] == [1, 1]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_fault_of_one_rank_skips_the_step_on_all_ranks(
    strategy: str, quick_fit: Command, two_ranks: Ranks, tmp_path: Path
) -> None:
    two = [f"--trainer.strategy={strategy}", "--trainer.devices=2", "--trainer.accelerator=cpu", UNJUDGED]
    two_ranks.run(quick_fit(CSV_ONLY, *SMALL, *two, breaks(what="engine", first=1, last=1, rank=1)), cwd=tmp_path)
    assert logged(tmp_path / "run", "train/skipped_steps") == [0, 1, 0]
    assert [fault["finite"] for fault in lines(tmp_path / "run" / "faults-1.jsonl")] == [False]
    assert {fault["finite"] for fault in lines(tmp_path / "run" / "faults-0.jsonl")} == {True}


def test_the_limit_has_to_be_at_least_one(quick_fit: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(quick_fit("--skipped_steps.max_in_a_row=0")) == 2
    assert "skipped_steps.max_in_a_row: expected at least 1, got 0" in capsys.readouterr().err
