"""Typed access to the trainer and the module for callbacks, whose hooks get a plain Trainer and LightningModule."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer

from vrft.training.module import VisionModule
from vrft.training.trainer import VisionTrainer


def vision_trainer(trainer: Trainer) -> VisionTrainer:
    """Return the trainer, typed."""
    assert isinstance(trainer, VisionTrainer)
    return trainer


def vision_module(pl_module: LightningModule) -> VisionModule:
    """Return the module, typed."""
    assert isinstance(pl_module, VisionModule)
    return pl_module
