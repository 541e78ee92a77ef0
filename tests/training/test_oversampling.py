"""Which completions of an oversampled group are trained on, against all subsets."""

from __future__ import annotations

import itertools
import json
import statistics
from pathlib import Path

import pytest
import torch

from tests.helpers import CSV_ONLY, UNJUDGED, Command
from tests.training.test_rft import logged
from vrft.__main__ import main
from vrft.training.oversampling import max_variance_subset


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("count", [2, 3, 6, 7])
def test_no_other_subset_has_rewards_that_vary_more(seed: int, count: int) -> None:
    values = torch.rand(2, 7, generator=torch.Generator().manual_seed(seed))
    rewards = torch.stack([values[0], (values[1] * 3).floor()])  # the second group has equal rewards
    chosen = max_variance_subset(rewards, count)
    for group, some in zip(rewards.double().tolist(), chosen.tolist(), strict=True):
        assert some == sorted({*some})
        best = max(statistics.pvariance(subset) for subset in itertools.combinations(group, count))
        assert statistics.pvariance([group[i] for i in some]) == pytest.approx(best, abs=1e-9)


def test_groups_without_variance_or_with_a_missing_reward() -> None:
    rewards = torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, torch.nan, 1.0, 0.5]])
    equal, missing = max_variance_subset(rewards, 2).tolist()
    assert len({*equal}) == 2
    assert 1 in missing  # the step is skipped, as without oversampling


def test_a_run_samples_all_scores_all_and_trains_on_the_most_telling(quick_fit: Command, tmp_path: Path) -> None:
    """Run with oversampling and sampling by difficulty; the second run resumes the first one's pass bit for bit."""
    settings = ["num_samples=6", "num_generations=2", "difficulty={reward: iou, success: 0.3, floor: 0.1}"]
    fit = quick_fit(CSV_ONLY, UNJUDGED, *(f"--model.{setting}" for setting in settings), "--data.batch_size=8")
    fit += ["--transcripts.every_n_rollouts=1", "--checkpoint.every_n_train_steps=1", "--checkpoint.save_top_k=-1"]
    assert main([*fit, "--trainer.max_steps=4"]) == 0  # two passes of two steps
    run = tmp_path / "run"
    rows = [json.loads(line) for line in (run / "transcripts.jsonl").read_text().splitlines()]
    assert {row["generation"] for row in rows} == {0, 1}
    assert max(logged(run)["train/success_rate"]) <= 1
    resumed = tmp_path / "resumed"
    more = [f"--ckpt_path={run}/checkpoints/step=3.ckpt", f"--run_dir={resumed}", "--trainer.max_steps=4"]
    assert main([*fit, *more]) == 0
    whole, part = (torch.load(path / "checkpoints/last.ckpt", weights_only=True) for path in (run, resumed))
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, part["state_dict"][name])
    positions = [
        content["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]["weights"] for content in (whole, part)
    ]
    assert torch.equal(*positions)
    assert len(positions[0].unique()) > 1
