"""Compare log-probabilities with a shared prompt with those of the model's original forward."""

from __future__ import annotations

import torch
from torch import Tensor

from vrft.policy.fused import unfuse_layers
from vrft.policy.prompts import Prompt
from vrft.policy.vlm import Policy


@torch.no_grad()
def sharing_gap(policy: Policy, prompt: Prompt, ids: Tensor, mask: Tensor) -> tuple[float, float]:
    """Return the difference between log-probabilities with a shared prompt and the original ones, and its limit.

    Both are mean absolute differences. In bfloat16, the limit is larger by twice the rounding error of the original
    forward.

    Args:
        policy: the policy.
        prompt: the prompt, with its pixels.
        ids: completions of the prompt, right-padded, (n, T).
        mask: 1 at real tokens, (n, T).
    """
    from vrft.policy.repeated import naive_log_probs

    training = policy.training
    policy.eval()
    rows = [row[kept.bool()] for row, kept in zip(ids, mask, strict=True)]
    with policy.unsharded():
        shared = policy([prompt], ids, mask, 1.0)[0][mask.bool()]
        own, rounding = naive_log_probs(policy.base, prompt, rows, policy.banned_ids, policy.dtype, policy.autocast())
    policy.train(training)
    return float((shared - own).abs().mean()), 1e-3 + 2 * rounding


def unfuse(policy: Policy) -> None:
    """Make all layers compute as in transformers, without fused operations."""
    policy.fused = False
    for model in (policy.base, policy.reference):
        if model is not None:
            unfuse_layers(model)
