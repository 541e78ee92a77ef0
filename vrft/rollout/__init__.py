"""Rollout engines, which sample completions from the policy."""

from vrft.rollout.base import RemoteEngine, RolloutEngine, Sampling, SamplingKey
from vrft.rollout.predictor import Predictor
from vrft.rollout.transformers import TransformersEngine
from vrft.rollout.vllm import VLLMServer

__all__ = ["Predictor", "RemoteEngine", "RolloutEngine", "Sampling", "SamplingKey", "TransformersEngine", "VLLMServer"]
