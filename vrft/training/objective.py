"""Settings of the objective: which combinations of them have a meaning, and the loss that they stand for."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vrft.errors import ConfigurationError
from vrft.training.grpo import KLEstimator, LossType, PolicyLoss, ScaleRewards, group_advantages, policy_loss
from vrft.training.importance import ImportanceSampling, importance_weights
from vrft.training.loss_inputs import LossInputs

SAPO_TEMPERATURES = (1.0, 1.05)
"""Temperatures of the paper, for positive advantages and for the others."""

CLIPPED: tuple[LossType, ...] = ("grpo", "bnpo", "dr_grpo", "dapo")
"""Losses that clip the ratio of each token."""


@dataclass(frozen=True, slots=True)
class Objective:
    """The objective's settings, with the names that they have below `model`; see `vrft.RFT` for each of them."""

    loss_type: LossType
    beta: float
    kl_estimator: KLEstimator
    epsilon: float
    epsilon_high: float | None
    delta: float | None
    sapo_temperatures: tuple[float, float]
    scale_rewards: ScaleRewards
    leave_one_out: bool
    importance_sampling: ImportanceSampling
    importance_cap: float

    def check(self) -> None:
        """Raise ConfigurationError for settings that have no meaning together."""
        self._check_clipping()

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

    def _temperatures(self) -> list[tuple[str, float]]:
        return list(zip(("sapo_temperature_pos", "sapo_temperature_neg"), self.sapo_temperatures, strict=True))

    def advantages(self, reward: Tensor) -> Tensor:
        """Return the advantages of rewards (P, G), those of all ranks, (P, G)."""
        return group_advantages(reward, self.scale_rewards, self.leave_one_out)

    def loss(self, log_probs: Tensor, inputs: LossInputs) -> PolicyLoss:
        """Return the loss of n rows. `log_probs`: the policy's (n, T), with gradient."""
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
            beta=self.beta,
            kl_estimator=self.kl_estimator,
            correction=importance_weights(log_ratio, self.importance_sampling, self.importance_cap, inputs.mask),
        )


def refused(name: str, value: object, given: str, expected: str) -> ConfigurationError:
    """Return the error for a setting that has no meaning with another one."""
    setting = given.partition("=")[0]
    return ConfigurationError(f"model.{name}={value} has no meaning with model.{given}; expected {setting} {expected}")
