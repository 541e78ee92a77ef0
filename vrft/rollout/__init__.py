"""Rollout engines: what samples completions."""

from vrft.rollout.base import Noise, RemoteEngine, RolloutEngine, Sampling
from vrft.rollout.transformers import TransformersEngine
from vrft.rollout.vllm import VLLMServer

__all__ = ["Noise", "RemoteEngine", "RolloutEngine", "Sampling", "TransformersEngine", "VLLMServer"]
