"""The settings of the objective, their validation, and the loss that they define."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vrft.errors import ConfigurationError
from vrft.rewards import Reward
from vrft.training.checks import check_settings
from vrft.training.grpo import (
    Baseline,
    KLEstimator,
    LossType,
    PolicyLoss,
    ScaleRewards,
    decoupled_advantages,
    group_advantages,
    policy_loss,
    tied_rewards,
    zero_variance_groups,
)
from vrft.training.importance import ImportanceSampling, importance_weights
from vrft.training.loss_inputs import LossInputs
from vrft.types import ScoredRollout

Aggregation = Literal["sum_then_normalize", "normalize_then_sum"]

ENTROPY_STEP = 0.005
"""Default of `entropy_step`, from Skywork-OR1 (arXiv 2505.22312)."""

SAPO_TEMPERATURES = (1.0, 1.05)
"""Default temperatures of sapo, from the paper (arXiv 2511.20347), for positive advantages and for the others."""

CLIPPED: tuple[LossType, ...] = ("grpo", "bnpo", "dr_grpo", "dapo")
"""Losses that clip the ratio of each token."""


@dataclass(frozen=True, slots=True)
class Objective:
    """The objective's settings, with the same names as below `model`, see `vrft.RFT`."""

    loss_type: LossType
    beta: float
    kl_in_reward: bool
    kl_estimator: KLEstimator
    epsilon: float
    epsilon_high: float | None
    delta: float | None
    sapo_temperatures: tuple[float, float]
    scale_rewards: ScaleRewards
    leave_one_out: bool
    baseline: Baseline
    multi_objective_aggregation: Aggregation
    importance_sampling: ImportanceSampling
    importance_cap: float
    top_entropy_quantile: float
    entropy_weight: float
    entropy_target: float | None
    entropy_step: float

    def check(self, *, overlong_buffer: int = 0, max_extra_rollouts: int = 0) -> None:
        """Raise ConfigurationError for invalid settings or combinations.

        Args:
            overlong_buffer: `model.overlong_buffer`, a penalty that is added to the sum of the rewards.
            max_extra_rollouts: `model.max_extra_rollouts`, which replaces groups with zero variance.
        """
        check_settings(
            top_entropy_quantile=(self.top_entropy_quantile, 1e-6, 1),
            importance_cap=(self.importance_cap, 1, float("inf")),
            **{name: (value, 1e-3, float("inf")) for name, value in self._temperatures()},
        )
        self._check_clipping()
        self._check_advantages()
        self._check_entropy()
        if self.decoupled and overlong_buffer:
            given = "multi_objective_aggregation=normalize_then_sum"
            expected = "sum_then_normalize, or a Length reward in place of the buffer"
            raise refused("overlong_buffer", overlong_buffer, given, expected)
        if self.baseline == "batch" and max_extra_rollouts:
            expected = "group: with batch, a group of zero variance has a gradient"
            raise refused("max_extra_rollouts", max_extra_rollouts, "baseline=batch", expected)

    def _check_clipping(self) -> None:
        if self.delta is not None:
            if self.loss_type not in CLIPPED:
                raise refused("delta", self.delta, f"loss_type={self.loss_type}", f"one of {', '.join(CLIPPED)}")
            upper = 1 + (self.epsilon if self.epsilon_high is None else self.epsilon_high)
            if not self.delta > upper:  # NaN too
                raise ConfigurationError(
                    f"model.delta: expected more than {upper:.10g}, up to which ratios are not clipped "
                    f"(1 + model.epsilon_high or model.epsilon), got {self.delta}"
                )
        if self.loss_type == "sapo" and self.epsilon_high is not None:
            raise refused("epsilon_high", self.epsilon_high, "loss_type=sapo", "another one: sapo clips nothing")
        if self.loss_type != "sapo" and self.sapo_temperatures != SAPO_TEMPERATURES:
            name, value = next(
                pair
                for pair, default in zip(self._temperatures(), SAPO_TEMPERATURES, strict=True)
                if pair[1] != default
            )
            raise refused(name, value, f"loss_type={self.loss_type}", "sapo")

    def _check_advantages(self) -> None:
        if self.kl_in_reward and not self.beta > 0:
            raise refused("kl_in_reward", True, f"beta={self.beta}", "above 0, the weight of the KL divergence")
        if self.baseline == "batch":
            if self.leave_one_out:
                raise refused("leave_one_out", True, "baseline=batch", "group")
            if self.scale_rewards == "group":
                raise refused("baseline", "batch", "scale_rewards=group", "batch or none")
        if self.decoupled:
            name = "multi_objective_aggregation"
            settings = {"scale_rewards": "group", "leave_one_out": False, "baseline": "group", "kl_in_reward": False}
            for other, needed in settings.items():
                if (value := getattr(self, other)) != needed:
                    raise refused(name, self.multi_objective_aggregation, f"{other}={value}", str(needed))

    def _check_entropy(self) -> None:
        if self.top_entropy_quantile < 1 and self.loss_type == "gspo":
            expected = "another one: gspo has one ratio for all tokens of a completion"
            raise refused("top_entropy_quantile", self.top_entropy_quantile, "loss_type=gspo", expected)
        if self.entropy_target is None:
            if self.entropy_step != ENTROPY_STEP:
                raise refused("entropy_step", self.entropy_step, "entropy_target=null", "a number")
        elif not 0 < self.entropy_target < float("inf"):
            raise ConfigurationError(f"model.entropy_target: expected a number above 0, got {self.entropy_target}")
        elif not self.entropy_step > 0:
            raise ConfigurationError(
                f"model.entropy_step: expected more than 0 with model.entropy_target, got {self.entropy_step}"
            )

    def _temperatures(self) -> list[tuple[str, float]]:
        return list(zip(("sapo_temperature_pos", "sapo_temperature_neg"), self.sapo_temperatures, strict=True))

    @property
    def decoupled(self) -> bool:
        """Whether each reward is normalised separately, so that advantages need all rewards."""
        return self.multi_objective_aggregation == "normalize_then_sum"

    @property
    def loss_beta(self) -> float:
        """Weight of the KL divergence in the loss."""
        return 0.0 if self.kl_in_reward else self.beta

    @property
    def has_bonus(self) -> bool:
        """Whether the loss has an entropy bonus, even if its weight is temporarily 0."""
        return self.entropy_weight > 0 or self.entropy_target is not None

    @property
    def trains_ties(self) -> bool:
        """Whether completions with advantage 0 have a gradient."""
        return self.loss_beta > 0 or self.has_bonus

    def advantages(self, rewards: Tensor, weights: Tensor) -> Tensor:
        """Return the advantages, (P, G).

        Args:
            rewards: sums of rewards of all ranks, (P, G), or K separate rewards, (P, G, K), if decoupled.
            weights: weights of the rewards, (K,), used if decoupled.
        """
        if self.decoupled:
            return decoupled_advantages(rewards, weights)
        return group_advantages(rewards, self.scale_rewards, self.leave_one_out, self.baseline)

    def signal(self, scored: ScoredRollout, rewards: Mapping[str, Reward]) -> Tensor:
        """Return the input of `advantages`: sums of rewards, (P, G), or K weighted rewards, (P, G, K), if decoupled."""
        if not self.decoupled:
            return scored.reward
        chosen = [values.view_as(scored.reward) for name, values in scored.rewards.items() if rewards[name].weight]
        return torch.stack(chosen, -1) if chosen else scored.reward.new_empty(*scored.reward.shape, 0)

    def zero_variance(self, rewards: Tensor) -> Tensor:
        """Return which groups have zero variance, (P,) bool, given rewards, (P, G), or (P, G, K) if decoupled."""
        return tied_rewards(rewards).all(1) if self.decoupled else zero_variance_groups(rewards)

    def loss(self, log_probs: Tensor, entropy: Tensor, inputs: LossInputs, entropy_weight: Tensor) -> PolicyLoss:
        """Return the loss of n rows.

        Args:
            log_probs: the policy's log-probabilities, (n, T), with gradient.
            entropy: the policy's entropies, (n, T), with gradient if there is a bonus.
            inputs: the other inputs of the loss.
            entropy_weight: current weight of the bonus, ().
        """
        log_ratio = inputs.old_log_probs - inputs.sampled_log_probs  # (n, T)
        return policy_loss(
            log_probs,
            inputs.old_log_probs,
            inputs.advantages,
            inputs.mask,
            inputs.weights,
            loss_type=self.loss_type,
            epsilon=self.epsilon,
            epsilon_high=self.epsilon_high,
            delta=self.delta,
            temperatures=self.sapo_temperatures,
            reference=inputs.reference,
            beta=self.loss_beta,
            kl_estimator=self.kl_estimator,
            correction=importance_weights(log_ratio, self.importance_sampling, self.importance_cap, inputs.mask),
            chosen=inputs.chosen,
            entropy=entropy if self.has_bonus else None,
            entropy_weight=entropy_weight,
        )


def refused(name: str, value: object, given: str, expected: str) -> ConfigurationError:
    """Return the error for a setting that is incompatible with another setting."""
    setting = given.partition("=")[0]
    return ConfigurationError(f"model.{name}={value} has no meaning with model.{given}; expected {setting} {expected}")
