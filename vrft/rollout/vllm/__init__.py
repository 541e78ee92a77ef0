"""Rollouts on vLLM servers: plain HTTP, weights by files that both sides see."""

from vrft.rollout.vllm.engine import VLLMServer

__all__ = ["VLLMServer"]
