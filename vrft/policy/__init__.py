"""The policy: a Hugging Face vision-language model, its processor and its family's habits."""

from vrft.policy.vlm import LoRA, Policy

__all__ = ["LoRA", "Policy"]
