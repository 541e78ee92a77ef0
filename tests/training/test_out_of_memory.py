"""Out of memory: the work is repeated in smaller parts, with the same result and a warning."""

from __future__ import annotations

import csv
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers import CSV_ONLY, Command
from tests.helpers.finished import short_fit
from vrft.__main__ import main
from vrft.policy import Policy
from vrft.rollout import TransformersEngine

SETTINGS = (
    "--data.batch_size=4",
    "--model.num_generations=4",
    "--model.max_completion_length=24",
    "--model.num_minibatches=2",
    "--trainer.limit_val_batches=0",
    "--trainer.max_steps=4",
)


Run = tuple[dict[str, Tensor], list[dict[str, str]], list[str]]


def run(command: list[str], folder: Path) -> Run:
    """Run a command; return the final weights, the rows of the log and the warnings about memory."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert main([*command, f"--run_dir={folder}"]) == 0
    weights = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    with (folder / "logs" / "version_0" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/grad_norm"]]
    return weights, rows, [str(entry.message) for entry in caught if "out of memory" in str(entry.message)]


def less_memory(monkeypatch: pytest.MonkeyPatch, tokens: int, rows: int) -> list[int]:
    """Run out of memory above this number of tokens or rollout rows. Return a list that collects rows per rollout."""
    forward, generate, rolled = Policy.forward, TransformersEngine.generate, []

    def small_forward(self: Policy, prompts: Any, ids: Tensor, mask: Tensor, *args: Any, **kwargs: Any) -> Any:
        result = forward(self, prompts, ids, mask, *args, **kwargs)
        size = sum(prompt["input_ids"].shape[1] for prompt in prompts) + int(mask.sum())
        if self.training and size > tokens:
            raise torch.OutOfMemoryError
        return result

    def small_generate(self: Any, policy: Any, batch: Any, num_generations: int, **kwargs: Any) -> Any:
        rolled.append(len(batch.samples) * num_generations)
        if rolled[-1] > rows:
            raise torch.OutOfMemoryError
        return generate(self, policy, batch, num_generations, **kwargs)

    monkeypatch.setattr(Policy, "forward", small_forward)
    monkeypatch.setattr(TransformersEngine, "generate", small_generate)
    return rolled


@pytest.fixture(scope="module")
def enough(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Make a run with enough memory."""
    folder = tmp_path_factory.mktemp("enough")
    return run(short_fit(folder, *SETTINGS), folder / "run")


@pytest.mark.parametrize(
    ("tokens", "rows"),
    [
        pytest.param(140, 16, id="prompts-apart"),
        pytest.param(80, 16, id="groups-apart"),
        pytest.param(10**6, 9, id="rollouts-of-two-prompts"),
        pytest.param(10**6, 3, id="rollouts-of-two-generations"),
        pytest.param(10**6, 1, id="rollouts-of-one"),
    ],
)
def test_a_run_with_less_memory_ends_the_same(
    tokens: int, rows: int, enough: Run, quick_fit: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, log, said = enough
    assert said == []
    assert [float(row["train/out_of_memory"]) for row in log] == [0, 0]
    rolled = less_memory(monkeypatch, tokens, rows)
    found, log, said = run(quick_fit(*SETTINGS), tmp_path / "less")
    assert said
    assert [float(row["train/out_of_memory"]) for row in log] == [len(said), 0]  # the second step starts smaller
    assert max(rolled[-4:]) <= rows
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=2e-5)


def test_a_supervised_run_ends_the_same(quick_fit: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ["fit", "--config", "quickstart_sft"]
    fit = config + quick_fit(CSV_ONLY, "--data.batch_size=4", "--trainer.limit_val_batches=0")[3:]
    expected, _, _ = run(fit, tmp_path / "enough")
    less_memory(monkeypatch, 100, 10**6)
    found, log, said = run(fit, tmp_path / "less")
    assert len(said) == float(log[0]["train/out_of_memory"]) > 0
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("tokens", "rows"), [pytest.param(20, 16, id="update"), pytest.param(10**6, 0, id="rollout")])
def test_too_little_memory_for_one_row_ends_the_run(
    tokens: int, rows: int, quick_fit: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    less_memory(monkeypatch, tokens, rows)
    with pytest.warns(UserWarning, match="out of memory; from here on"):
        assert main(quick_fit(CSV_ONLY, *SETTINGS)) == 1
    assert "OutOfMemoryError" in capsys.readouterr().err
