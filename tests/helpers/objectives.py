"""The objective that `vrft.RFT` has without any setting, but with a local engine."""

from __future__ import annotations

from vrft.training.objective import SAPO_TEMPERATURES, Objective

DEFAULT = Objective(
    loss_type="grpo",
    beta=0.04,
    kl_in_reward=False,
    kl_estimator="k3",
    epsilon=0.2,
    epsilon_high=None,
    delta=None,
    sapo_temperatures=SAPO_TEMPERATURES,
    scale_rewards="group",
    leave_one_out=False,
    baseline="group",
    multi_objective_aggregation="sum_then_normalize",
    importance_sampling="none",
    importance_cap=2.0,
    top_entropy_quantile=1.0,
    entropy_weight=0.0,
    entropy_target=None,
    entropy_step=0.005,
)
