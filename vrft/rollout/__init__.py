"""Rollout engines: what samples completions."""

from vrft.rollout.base import Noise, RolloutEngine, Sampling
from vrft.rollout.transformers import TransformersEngine

__all__ = ["Noise", "RolloutEngine", "Sampling", "TransformersEngine"]
