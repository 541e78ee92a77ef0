"""Decode completions to text."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vrft.types import Rollout


def completion_texts(tokenizer: Any, ids: Tensor, mask: Tensor, stop_ids: Tensor) -> list[str]:
    """Decode completions, (N, T), without the stop token. Other special tokens are part of the answer."""
    ids, mask, stop_ids = ids.cpu(), mask.cpu(), stop_ids.cpu()  # else each row would wait for the GPU
    kept = mask.bool() & ~torch.isin(ids, stop_ids)
    rows = [row[keep].tolist() for row, keep in zip(ids, kept, strict=True)]
    texts: list[str] = tokenizer.batch_decode(rows, skip_special_tokens=False)
    return texts


def completion_token_texts(tokenizer: Any, rollout: Rollout, stop_ids: Tensor) -> list[tuple[tuple[str, float], ...]]:
    """Return the text and log-probability of each token of each of N completions, without the stop token."""
    ids, log_probs, mask = rollout.ids.cpu(), rollout.log_probs.cpu(), rollout.mask.cpu()
    kept = mask.bool() & ~torch.isin(ids, stop_ids.cpu())
    return [
        tuple(zip(map(tokenizer.decode, row[keep].tolist()), values[keep].tolist(), strict=True))
        for row, values, keep in zip(ids, log_probs, kept, strict=True)
    ]
