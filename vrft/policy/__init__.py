"""The policy: a Hugging Face vision-language model, its processor and the prompt format of its family."""

from vrft.policy.lora import LoRA
from vrft.policy.vlm import Policy

__all__ = ["LoRA", "Policy"]
