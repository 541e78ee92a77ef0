"""Combinations of the objective's settings that have no meaning."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from tests.helpers.objectives import DEFAULT
from vrft.errors import ConfigurationError

GDPO = {"multi_objective_aggregation": "normalize_then_sum"}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"delta": 4.0, "loss_type": "gspo"}, "model.delta=4.0 has no meaning with model.loss_type=gspo"),
        ({"delta": 4.0, "loss_type": "cispo"}, "model.delta=4.0 has no meaning with model.loss_type=cispo"),
        ({"delta": 4.0, "loss_type": "sapo"}, "model.delta=4.0 has no meaning with model.loss_type=sapo"),
        ({"delta": 1.2}, "model.delta: expected more than 1.2, .* got 1.2"),
        ({"delta": 1.25, "epsilon_high": 0.28}, "model.delta: expected more than 1.28"),
        ({"loss_type": "sapo", "epsilon_high": 0.28}, "model.epsilon_high=0.28 has no meaning with .*sapo"),
        ({"sapo_temperatures": (1.0, 2.0)}, "model.sapo_temperature_neg=2.0 has no meaning with model.loss_type=grpo"),
        ({"sapo_temperatures": (2.0, 1.05)}, "model.sapo_temperature_pos=2.0 has no meaning"),
        ({"top_entropy_quantile": 0.2, "loss_type": "gspo"}, "model.top_entropy_quantile=0.2 .* model.loss_type=gspo"),
        ({"entropy_step": 0.1}, "model.entropy_step=0.1 has no meaning with model.entropy_target=null"),
        ({"entropy_target": 0.3, "entropy_step": 0.0}, "model.entropy_step: expected more than 0"),
        ({"entropy_target": 0.0}, "model.entropy_target: expected a number above 0, got 0.0"),
        ({"entropy_target": float("nan")}, "model.entropy_target: expected a number above 0, got nan"),
        ({"kl_in_reward": True, "beta": 0.0}, "model.kl_in_reward=True has no meaning with model.beta=0.0"),
        ({"baseline": "batch"}, "model.baseline=batch .* model.scale_rewards=group; expected scale_rewards batch or"),
        ({"baseline": "batch", "scale_rewards": "none", "leave_one_out": True}, "leave_one_out=True .*baseline=batch"),
        (GDPO | {"scale_rewards": "batch"}, "normalize_then_sum has no meaning with model.scale_rewards=batch"),
        (GDPO | {"leave_one_out": True}, "normalize_then_sum has no meaning with model.leave_one_out=True"),
        (GDPO | {"baseline": "batch", "scale_rewards": "none"}, "normalize_then_sum .* with model.scale_rewards=none"),
        (GDPO | {"kl_in_reward": True}, "normalize_then_sum has no meaning with model.kl_in_reward=True"),
    ],
)
def test_settings_without_a_meaning_together_are_refused(settings: dict[str, Any], said: str) -> None:
    DEFAULT.check()
    with pytest.raises(ConfigurationError, match=said):
        dataclasses.replace(DEFAULT, **settings).check()


def test_settings_of_a_step_that_the_objective_excludes_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"model.overlong_buffer=20 has no meaning with .*normalize_then_sum"):
        dataclasses.replace(DEFAULT, **GDPO).check(overlong_buffer=20)  # type: ignore[arg-type]
    with pytest.raises(
        ConfigurationError, match=r"model.max_extra_rollouts=1 has no meaning with model.baseline=batch"
    ):
        dataclasses.replace(DEFAULT, baseline="batch", scale_rewards="batch").check(max_extra_rollouts=1)
    DEFAULT.check(overlong_buffer=20, max_extra_rollouts=1)


def test_groups_of_zero_variance_are_tied_in_every_reward_if_decoupled() -> None:
    rewards = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]]])  # (P, G, K)
    assert DEFAULT.zero_variance(rewards.sum(-1)).tolist() == [True, True]
    assert dataclasses.replace(DEFAULT, **GDPO).zero_variance(rewards).tolist() == [False, True]  # type: ignore[arg-type]


def test_settings_with_a_meaning_are_accepted() -> None:
    dataclasses.replace(DEFAULT, delta=4.0, loss_type="dapo").check()
    dataclasses.replace(DEFAULT, baseline="batch", scale_rewards="batch", kl_in_reward=True).check()
    dataclasses.replace(DEFAULT, loss_type="sapo", sapo_temperatures=(1.0, 2.0)).check()
