"""Whole runs on vLLM servers, and completions that are never trained on."""

from __future__ import annotations

import csv
import itertools
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import CSV_ONLY, Command
from tests.helpers.forks import fork_vrft
from tests.helpers.ranks import Ranks
from tests.helpers.vllm_server import VLLM
from vrft.__main__ import main
from vrft.errors import ConfigurationError
from vrft.rewards import Format
from vrft.training.grpo import PolicyLoss, policy_loss
from vrft.training.rft import RFT


@pytest.fixture
def built_in(fakes: Callable[..., VLLM]) -> VLLM:
    """Start a server of the built-in policy."""
    return fakes("tiny-detection")


@pytest.fixture
def fit(quick_fit: Command) -> Command:
    """Return a function that builds the command of a short run on servers."""

    def command(*urls: str, more: tuple[str, ...] = ()) -> list[str]:
        words = [CSV_ONLY, "--data.batch_size=2", "--model.num_generations=4", "--model.max_completion_length=24"]
        words += ["--trainer.limit_val_batches=1", "--model.lr_scheduler=null", "--data.val_size=1"]
        if urls:
            words += ["--config", "engine/vllm"]
            words += [f"--model.engine.init_args.urls=[{', '.join(urls)}]"]
        return quick_fit(*words, *more)

    return command


def logged(run: Path, version: int = 0) -> list[dict[str, float]]:
    """Return the log's rows of training steps."""
    with (run / "logs" / f"version_{version}" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("train/reward")]
    return [{name: float(value) for name, value in row.items() if value} for row in rows]


def files_of_weights(run: Path) -> list[Path]:
    """Return the remaining folders of weights for servers."""
    return [path for path in (run / "vllm").iterdir() if path.is_dir()]


def comparable(row: dict[str, float]) -> dict[str, float]:
    return {
        name: value for name, value in row.items() if not name.startswith(("time/", "memory/", "train/samples_per"))
    }


@pytest.mark.parametrize(
    ("more", "images"),
    [((), 1), (("--model.policy.lora={r: 4}", "--data.examples=1"), 2)],
    ids=["full", "lora with an example"],
)
def test_a_run_trains_and_measures_the_mismatch(
    more: tuple[str, ...], images: int, fit: Command, built_in: VLLM, tmp_path: Path
) -> None:
    assert main(fit(built_in.url, more=more)) == 0
    asked = [[part["type"] for turn in body["messages"] for part in turn["content"]] for body in built_in.bodies]
    assert {parts.count("image_url") for parts in asked} == {images}
    rows = logged(tmp_path / "run")
    assert [row["train/sampling_gap_max"] < 1e-4 for row in rows] == [True, True]
    assert [row["train/importance/ratio_p50"] for row in rows] == pytest.approx([1, 1], abs=1e-4)
    assert max(row["train/grad_norm"] for row in rows) > 0
    assert not rows[0].get("train/staleness")
    assert not files_of_weights(tmp_path / "run")
    assert not built_in.adapters


def test_other_weights_on_the_server_end_the_run_before_training(
    fit: Command, fakes: Callable[..., VLLM], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = fakes("tiny-digits")
    more = ("--model.policy.lora={r: 4}", "--trainer.limit_val_batches=0")
    assert main(fit(other.url, more=more)) == 1
    assert "log-probabilities differ from the trainer's by" in capsys.readouterr().out
    assert not (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


@pytest.mark.parametrize(("command", "config"), [("validate", "quickstart_sft"), ("predict", "quickstart")])
def test_other_weights_on_the_server_are_not_evaluated(
    command: str, config: str, fit: Command, fakes: Callable[..., VLLM], capsys: pytest.CaptureFixture[str]
) -> None:
    words = fit(fakes("tiny-digits").url, more=("--model.policy.lora={r: 4}",))[1:]
    words = [word for word in words if command == "validate" or "callbacks" not in word]
    if config == "quickstart_sft":
        words = [word for word in words if "num_generations" not in word]
        words[words.index("quickstart")] = config
    assert main([command, *words]) == 1
    assert "log-probabilities differ from the trainer's by" in capsys.readouterr().out


def test_a_run_without_answers_saves_and_resumes_like_an_uninterrupted_run(
    fit: Command, built_in: VLLM, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends in an epoch and, resumed, at the start of the next one; an epoch has three steps.

    A clock that is put forward by an hour with each error stands for the wait for an answer.
    """
    late, monotonic = [0.0], time.monotonic
    monkeypatch.setattr("vrft.rollout.vllm.engine.time.monotonic", lambda: monotonic() + late[0])
    built_in.on_error = lambda: late.__setitem__(0, late[0] + 3600.0)
    steps = ("--trainer.max_steps=4", "--trainer.limit_val_batches=0", "--data.train_size=2", "--data.batch_size=1")
    assert main(fit(built_in.url, more=(*steps, f"--run_dir={tmp_path}/whole"))) == 0
    whole = logged(tmp_path / "whole")
    assert [row["epoch"] for row in whole] == [0, 0, 0, 1]
    for answers, resumed in ((1, ()), (2, ("--ckpt_path=last",))):
        capsys.readouterr()
        built_in.faults.extend([""] * answers + ["500"] * 20)
        assert main([*fit(built_in.url, more=steps), *resumed]) == 1
        said = capsys.readouterr().out
        assert "stopped: no server answered the prompt of sample" in said
        assert "last.ckpt" in said
        assert not files_of_weights(tmp_path / "run")
        assert "--ckpt_path last" in said
        built_in.faults.clear()
    assert main([*fit(built_in.url, more=steps), "--ckpt_path=last"]) == 0
    parts = [row for version in range(3) for row in logged(tmp_path / "run", version)]
    steps_of = {row["step"]: comparable(row) for row in parts}
    assert [steps_of[row["step"]] for row in whole] == [pytest.approx(comparable(row), abs=1e-4) for row in whole]


def test_one_step_ahead_is_one_step_stale_and_corrected(
    fit: Command, built_in: VLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corrections: list[float] = []

    def spied(*args: Any, correction: torch.Tensor, **settings: Any) -> PolicyLoss:
        corrections.append(float((correction - 1).abs().max()))
        return policy_loss(*args, correction=correction, **settings)

    ahead: list[list[str]] = []
    monkeypatch.setattr("vrft.training.objective.policy_loss", spied)
    monkeypatch.setattr(Format, "remote", True)
    monkeypatch.setattr(Format, "ahead", lambda _, answers, samples: ahead.append([one.text for one in answers]))
    more = ("--transcripts.every_n_rollouts=1",)
    more += ("--model.engine.init_args.one_step_ahead=true", "--trainer.max_steps=3", "--trainer.val_check_interval=2")
    assert main(fit(built_in.url, more=more)) == 0
    rows = logged(tmp_path / "run")
    assert [row["train/staleness"] for row in rows] == [0, 1, 1]
    assert rows[0]["train/sampling_gap_max"] < 1e-4
    assert all(row["train/sampling_gap_max"] > 1e-4 for row in rows[1:]), "sampled with the weights of a step before"
    assert corrections[0] < 1e-3
    assert corrections[-1] > 1e-4, "what is learnt from them counts by its ratio"
    lines = [json.loads(line) for line in (tmp_path / "run" / "transcripts.jsonl").read_text().splitlines()]
    steps = [[*group] for _, group in itertools.groupby(lines, lambda line: line["rollout"])]
    trained = [[line["completion"] for line in step] for step in steps]
    assert ahead == trained[1:], "remote rewards get them while the step before trains"


def test_two_ranks_share_a_server(fit: Command, built_in: VLLM, two_ranks: Ranks, tmp_path: Path) -> None:
    more = ("--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.max_steps=3")
    more += ("--model.engine.init_args.one_step_ahead=true", "--model.engine.init_args.max_gap=1")
    two_ranks.run(fit(built_in.url, more=more))
    rows = logged(tmp_path / "run")
    assert rows[0]["train/sampling_gap_max"] < 1e-4
    assert [row["train/staleness"] for row in rows] == [0, 1, 1]
    seeds = [body["seed"] for body in built_in.bodies if "seed" in body]
    assert len({*seeds}) == len(seeds) == 3 * 2 * 2, "steps, ranks, prompts"
    assert not files_of_weights(tmp_path / "run")


def test_configuration_errors_leave_the_count_of_batches_unchanged(
    fit: Command, built_in: VLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ranks can't agree on the count: only one may see the error, and the loader may not have yielded the batch."""

    def dead(*_: Any) -> None:
        raise ConfigurationError("data.num_workers: 3 workers died")

    monkeypatch.setattr(RFT, "on_train_batch_start", dead)
    monkeypatch.setattr("vrft.callbacks.checkpoint.uncount_batch", dead)
    assert main(fit(built_in.url, more=("--trainer.limit_val_batches=0",))) == 2
    assert "stopped" not in capsys.readouterr().out
    assert not list((tmp_path / "run").glob("vllm/*/"))


def test_an_address_without_a_server_is_reported(fit: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(fit("http://127.0.0.1:9")) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("vrft: model.engine: http://127.0.0.1:9 does not report how it was started")
    assert "serve-command" in said


def test_one_ctrl_c_ends_the_wait_for_a_server(fit: Command, built_in: VLLM, tmp_path: Path) -> None:
    built_in.faults.extend([""] * 2 + ["slow"] * 20)
    waits = [f"--model.engine.init_args.{name}=3000" for name in ("timeout", "patience")]
    command = fit(built_in.url, more=(*waits, "--trainer.limit_val_batches=0", "--trainer.max_steps=3"))
    run = fork_vrft(command, tmp_path / "output")
    try:
        while len(built_in.faults) > 19:  # the second step waits for its answers
            assert run.poll() is None, run.output.read_text()
            time.sleep(0.02)
        start = time.monotonic()
        run.send_signal(signal.SIGINT)
        assert run.wait() == 128 + signal.SIGINT, run.output.read_text()
        assert time.monotonic() - start < 120  # the timeout is 3000 s; the last step is saved
    finally:
        run.kill()
    assert "stopped: SIGINT during a rollout, step 1 is saved" in run.output.read_text()
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()
