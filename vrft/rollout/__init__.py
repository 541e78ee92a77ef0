"""Rollout engines: what samples completions."""

from vrft.rollout.base import Noise, RolloutEngine, Sampling
from vrft.rollout.remote import RemoteEngine, RolloutFailed
from vrft.rollout.transformers import TransformersEngine
from vrft.rollout.vllm import VLLMServer

__all__ = ["Noise", "RemoteEngine", "RolloutEngine", "RolloutFailed", "Sampling", "TransformersEngine", "VLLMServer"]
