"""Rollouts on vLLM servers over HTTP. New weights are passed as files."""

from vrft.rollout.vllm.engine import VLLMServer

__all__ = ["VLLMServer"]
