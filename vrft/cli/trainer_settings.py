"""Refuse settings of Lightning's Trainer that vrft replaces by its own or that would silently change a run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateFinder,
    StochasticWeightAveraging,
    WeightAveraging,
)

from vrft.cli.trainer_values import ONLY, as_yaml, check_value
from vrft.errors import ConfigurationError

UNSUPPORTED = (
    *(BatchSizeFinder, GradientAccumulationScheduler, LearningRateFinder, StochasticWeightAveraging, WeightAveraging),
)
"""Callbacks that need automatic optimization, or change the weights that checkpoints and rollouts use."""

ENVIRONMENT = "PL_TRAINER_"
"""Prefix of the environment variables that set defaults of Lightning's Trainer."""


def check_trainer_settings(settings: Namespace, run_dir: str, trains: bool) -> None:
    """Check the settings below `trainer`.

    Args:
        settings: the settings.
        run_dir: folder of the run.
        trains: whether the command is `fit`.

    Raises:
        ConfigurationError: a setting is refused. The message names a replacement.
    """
    for name in sorted(os.environ):
        if name.startswith(ENVIRONMENT) and os.environ[name]:
            option = f"--trainer.{name.removeprefix(ENVIRONMENT).lower()}"
            raise ConfigurationError(f"environment: {name} has no effect; {option} is the setting")
    for name in ONLY:
        check_value(name, settings[name])
    if settings.default_root_dir not in (None, run_dir):
        raise ConfigurationError(
            f"trainer.default_root_dir: expected null, got {settings.default_root_dir}; run_dir is the setting"
        )
    if settings.log_every_n_steps == 0:
        raise ConfigurationError("trainer.log_every_n_steps: expected at least 1, got 0; the report needs the metrics")
    for name in ("max_steps", "max_epochs"):
        value = settings[name]
        if trains and value is not None and value < 1 and value != -1:
            raise ConfigurationError(f"trainer.{name}: expected at least 1, or -1 for no limit, got {value}")
    if trains and settings.max_epochs is None and settings.max_steps == -1 and settings.max_time is None:
        raise ConfigurationError(
            "trainer: the run has no end; set trainer.max_steps, trainer.max_epochs or trainer.max_time, or "
            "trainer.max_epochs=-1 to train until it is stopped"
        )
    _check_evaluations(settings.val_check_interval, settings.check_val_every_n_epoch)


def _check_evaluations(interval: Any, every_epochs: int | None) -> None:
    """Check the interval of evaluations early. Lightning checks it in `fit`, after the evaluation of the base.

    Raises:
        ConfigurationError: the settings contradict each other.
    """
    field = "trainer.val_check_interval"
    if every_epochs is not None and every_epochs < 1:
        raise ConfigurationError(f"trainer.check_val_every_n_epoch: expected at least 1 or null, got {every_epochs}")
    if interval is not None and not isinstance(interval, int | float):
        raise ConfigurationError(f"{field}: expected a number of rollouts, got {interval}; clocks of ranks differ")
    if interval is not None and interval <= 0:
        raise ConfigurationError(f"{field}: expected at least 1, got {interval}; trainer.limit_val_batches=0 is never")
    is_share = interval is None or (isinstance(interval, float) and interval <= 1)
    if is_share and every_epochs is None:
        raise ConfigurationError(
            f"{field}: expected a number of rollouts, got {as_yaml(interval)}; a share of an epoch, e.g. 1.0, needs "
            "trainer.check_val_every_n_epoch=1"
        )
    if not is_share and every_epochs is not None:
        raise ConfigurationError(
            f"{field}: expected a share of an epoch, e.g. 1.0 for its end, got {interval}; a number of rollouts needs "
            "trainer.check_val_every_n_epoch=null"
        )


def check_callbacks(callbacks: Sequence[Callback]) -> None:
    """Raise ConfigurationError for a callback that doesn't work with several optimizer steps per rollout."""
    for callback in callbacks:
        if isinstance(callback, UNSUPPORTED):
            raise ConfigurationError(f"trainer.callbacks: {type(callback).__name__} is not supported")


def check_early_stopping(trainer: Trainer) -> None:
    """Check, after an evaluation, that the held-out scores that `EarlyStopping` monitors exist.

    Raises:
        ConfigurationError: the evaluation has no such score.
    """
    known = [name for name in trainer.callback_metrics if name.startswith("val/")]
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # Lightning doesn't declare it
        if not isinstance(callback, EarlyStopping) or not callback.strict or not known:
            continue
        if not callback.monitor.startswith("train/") and callback.monitor not in known:
            raise ConfigurationError(
                f"trainer.callbacks: EarlyStopping.monitor: expected a metric of training, train/NAME, or one of "
                f"{', '.join(sorted(known))}; got {callback.monitor}"
            )
