"""Check settings of Lightning's Trainer that accept only a few values, without importing torch or Lightning."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from vrft.cli.argv import option_values, read_config
from vrft.errors import ConfigurationError
from vrft.utils.yaml_text import decode_yaml

ONLY: dict[str, tuple[tuple[Any, ...], str]] = {
    "fast_dev_run": ((0, False), "--trainer.max_steps=1 is a short run, and `doctor` checks a config without training"),
    "overfit_batches": ((0, 0.0), "to overfit a few images, give their files as training and as held-out data"),
    "limit_train_batches": ((None, 1.0), "trainer.max_steps limits the run; data.shots or fewer files the images"),
    "accumulate_grad_batches": (
        (1,),
        "data.batch_size is the number of prompts per step, and model.max_tokens_per_micro_batch saves memory",
    ),
    "gradient_clip_val": ((None,), "model.max_grad_norm is the setting"),
    "gradient_clip_algorithm": ((None, "norm"), "model.max_grad_norm clips by the norm"),
    "barebones": ((False,), "a run needs its checkpoints and logs"),
    "enable_checkpointing": ((None, True), "checkpoint.every_n_train_steps sets how often a checkpoint is written"),
    "num_sanity_val_steps": ((0,), "`fit` evaluates the base before it trains"),
    "inference_mode": ((False,), "tensors that are made in inference mode can't be trained on later"),
    "use_distributed_sampler": ((False,), "the data shards itself, with an order that a resumed run knows"),
    "reload_dataloaders_every_n_epochs": ((0,), "each epoch has an order of its own"),
    "sync_batchnorm": ((False,), "ranks share nothing but gradients"),
    "model_registry": ((None,), "ckpt_path takes a file"),
}
"""Accepted values of each setting, and what to use instead of others."""


def check_value(name: str, value: Any) -> None:
    """Raise ConfigurationError for an invalid value of a trainer setting."""
    allowed, instead = ONLY[name]
    if not _is_one(value, allowed):
        raise ConfigurationError(f"trainer.{name}: expected {as_yaml(allowed[-1])}, got {as_yaml(value)}; {instead}")


def check_given(options: Sequence[str]) -> None:
    """Raise ConfigurationError for a trainer setting if all of its values in configs and options are invalid.

    The parser later decides which of several values applies, and resolves `${…}`.
    """
    sections = [read_config(config).get("trainer") for config in option_values(options, "--config")]
    for name, (allowed, _) in ONLY.items():
        values = [section[name] for section in sections if isinstance(section, dict) and name in section]
        with suppress(ValueError):  # not YAML; the parser reports it
            values += [decode_yaml(text) for text in option_values(options, f"--trainer.{name}")]
        if values and not any(_is_one(value, allowed) or "${" in str(value) for value in values):
            check_value(name, values[-1])


def as_yaml(value: Any) -> str:
    """Return a setting's value as written in a config."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _is_one(value: Any, allowed: Sequence[Any]) -> bool:
    return (type(value), value) in [(type(each), each) for each in allowed]
