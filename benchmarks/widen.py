"""Widen a built-in policy for vLLM's CPU backend: twice the width, heads of dimension 32, an untied LM head.

    python benchmarks/widen.py tiny-detection FOLDER

Every unit is duplicated, and the weights that read it are halved. Attention heads are padded with zeros so that the
rotary frequencies of the original channels are unchanged. The wide policy computes the same function.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText

from vrft.policy.checkpoint import find_checkpoint
from vrft.policy.tiny import build_model, build_tokenizer, write_checkpoint

PLACES = torch.tensor([2 * c if c < 8 else 16 + 2 * (c - 8) for c in range(16)])
"""Positions of the 16 channels of a narrow head in a wide one."""


def twice(w: Tensor) -> Tensor:
    """Duplicate each output."""
    return torch.cat([w, w])


def halved(w: Tensor) -> Tensor:
    """Duplicate and halve each input: (out, in) -> (out, 2 in)."""
    return torch.cat([w, w], 1) / 2


def padded(w: Tensor) -> Tensor:
    """Pad the outputs of each head: (heads * 16, …) -> (heads * 32, …)."""
    heads = w.unflatten(0, (-1, 16))
    return w.new_zeros(len(heads), 32, *w.shape[1:]).index_copy(1, PLACES, heads).flatten(0, 1)


def queries(w: Tensor) -> Tensor:
    """Pad and scale queries, since attention divides scores by the square root of the head's dimension."""
    return padded(w) * 2**0.5


def widen(name: str, w: Tensor) -> Tensor:
    """Return a parameter of the wide model, given the parameter of the narrow model."""
    if "embed_tokens" in name:
        return torch.cat([w, w], 1)
    if "lm_head" in name:
        return halved(w)
    w_in = halved(w) if w.ndim == 2 else w
    if "q_proj" in name:
        return queries(w_in)
    if "k_proj" in name or "v_proj" in name:
        return padded(w_in)
    if "attn.qkv" in name:
        q, k, v = w_in.chunk(3)
        return torch.cat([queries(q), padded(k), padded(v)])
    if ("o_proj" in name or "attn.proj" in name) and w.ndim == 2:
        return twice(padded(w.T).T)
    if "merger.mlp.0.weight" in name:  # its input is the concatenation of four patches
        return twice(w.unflatten(1, (4, -1)).repeat(1, 1, 2).flatten(1) / 2)
    return twice(w_in)


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args(args)
    narrow = AutoModelForImageTextToText.from_pretrained(find_checkpoint(arguments.checkpoint), dtype=torch.float32)
    write_checkpoint(arguments.folder, width=128, tied=False)
    wide = build_model(build_tokenizer(), 0, width=128, tied=False)
    state = {name: widen(name, w) for name, w in narrow.state_dict().items()}
    wide.load_state_dict(state)
    wide.save_pretrained(arguments.folder)


if __name__ == "__main__":
    main()
