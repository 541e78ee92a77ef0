"""vrft: visual reinforcement fine-tuning of vision-language models, on PyTorch Lightning."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vrft.policy import LoRA, Policy
    from vrft.rollout import Predictor
    from vrft.training.rft import RFT
    from vrft.training.sft import SFT

__version__ = "0.1.0"

__all__ = ["RFT", "SFT", "LoRA", "Policy", "Predictor"]

_HOMES = {
    "LoRA": "vrft.policy",
    "Policy": "vrft.policy",
    "Predictor": "vrft.rollout",
    "RFT": "vrft.training.rft",
    "SFT": "vrft.training.sft",
}


def __getattr__(name: str) -> Any:
    """Import on first use, so that `import vrft` and `--help` need no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'vrft' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
