"""Rollout engines: what samples completions."""

from vrft.rollout.base import Noise, RolloutEngine
from vrft.rollout.transformers import TransformersEngine

__all__ = ["Noise", "RolloutEngine", "TransformersEngine"]
