"""Combinations of the objective's settings that have no meaning."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from vrft.errors import ConfigurationError
from vrft.training.objective import SAPO_TEMPERATURES, Objective

DEFAULT = Objective(
    loss_type="grpo",
    beta=0.04,
    kl_estimator="k3",
    epsilon=0.2,
    epsilon_high=None,
    delta=None,
    sapo_temperatures=SAPO_TEMPERATURES,
    scale_rewards="group",
    leave_one_out=False,
    importance_sampling="none",
    importance_cap=2.0,
)


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
    ],
)
def test_settings_without_a_meaning_together_are_refused(settings: dict[str, Any], said: str) -> None:
    DEFAULT.check()
    with pytest.raises(ConfigurationError, match=said):
        dataclasses.replace(DEFAULT, **settings).check()


def test_settings_with_a_meaning_are_accepted() -> None:
    dataclasses.replace(DEFAULT, delta=4.0, loss_type="dapo").check()
    dataclasses.replace(DEFAULT, loss_type="sapo", sapo_temperatures=(1.0, 2.0)).check()
