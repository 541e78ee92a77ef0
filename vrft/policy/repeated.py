"""Forwards that repeat a prompt for each of its completions, the fallback and the test reference of `shared_prefix`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from vrft.policy.four_bits import four_bits_computing_in
from vrft.policy.fused import own_forwards
from vrft.policy.head import logits_of
from vrft.policy.logprobs import token_distribution
from vrft.policy.prompts import TOKEN_KEYS, ImageFeatures, Prompt, all_images, encode_images, image_entries

GRID_KEYS = ("_grid_thw", "target_sizes")
"""Suffixes of the keys that determine rotary positions in images, with one row per image."""


def with_tokens(prompt: Prompt, tokens: Tensor, mask: Tensor) -> dict[str, Any]:
    """Repeat the token entries of a prompt n times, and append n texts, given as tokens and mask, each (n, T)."""
    tails = {"input_ids": tokens, "attention_mask": mask}
    return {
        key: torch.cat([prompt[key].expand(len(tokens), -1), tails.get(key, torch.zeros_like(tokens))], 1)
        for key in TOKEN_KEYS
        if key in prompt
    }


def repeated_hidden_states(
    model: PreTrainedModel, prompts: Sequence[Prompt], ids: Tensor, lengths: Sequence[int]
) -> Tensor:
    """Compute `shared_prefix.group_hidden_states` for any model by repeating the text, but not the images, of prompts.

    Args:
        model: the model.
        prompts: P prompts.
        ids: completions, (N, T).
        lengths: number of tokens of each of N completions.

    Returns:
        Hidden states that predict the real tokens, concatenated over rows, (sum of lengths, H).
    """
    group_size = len(lengths) // len(prompts)
    parts = []
    for p, prompt in enumerate(prompts):
        rows = slice(p * group_size, (p + 1) * group_size)
        longest = max(*lengths[rows], 1)
        mask = torch.arange(longest) < torch.tensor(lengths[rows])[:, None]
        mask = mask.to(ids.device)  # (G, n)
        features = ImageFeatures.join([encode_images(model, prompt)] * group_size)
        grids = {key: value.repeat(group_size, 1) for key, value in all_images(prompt, GRID_KEYS).items()}
        hidden = model.base_model(
            **with_tokens(prompt, ids[rows, :longest], mask.long()),
            **grids,
            mm_encoder_outputs=features.for_model(),
            use_cache=False,
        ).last_hidden_state[:, -longest - 1 : -1]
        parts.append(hidden[mask])
    return torch.cat(parts)


def naive_logits(model: PreTrainedModel, prompt: Prompt, completion: Tensor) -> Tensor:
    """Return the logits, (T, V), of a completion, (T,), from the model's original forward of text and pixels.

    For a prompt with a shared start, whose pixels are in two parts, the model receives the features of the images.
    """
    rows = with_tokens(prompt, completion[None], torch.ones_like(completion)[None])
    if "start" in prompt:
        features, grids = encode_images(model, prompt), all_images(prompt, GRID_KEYS)
        output = model.base_model(**rows, **grids, use_cache=False, mm_encoder_outputs=features.for_model())
        return logits_of(model)(output.last_hidden_state[0, -len(completion) - 1 : -1])
    images = {key: value.to(completion.device) for key, value in image_entries(prompt).items()}
    kept = len(completion) + 1  # models without `logits_to_keep` ignore it
    return model(**rows, **images, use_cache=False, logits_to_keep=kept).logits[0, -kept:-1]


def naive_log_probs(
    model: PreTrainedModel,
    prompt: Prompt,
    completions: Sequence[Tensor],
    banned: Tensor,
    dtype: torch.dtype,
    autocast: AbstractContextManager[Any],
) -> tuple[Tensor, float]:
    """Return log-probabilities of completions from the model's original forward, and their mean rounding error.

    Args:
        model: the model, with unsharded weights.
        prompt: the prompt, with its pixels.
        completions: completions without padding, each (T,).
        banned: ids that can't be sampled, 1-D.
        dtype: compute dtype.
        autocast: context that computes in `dtype`.

    Returns:
        Log-probabilities of all tokens, concatenated over rows, and their mean absolute difference from float32.
    """

    def compute() -> Tensor:
        logits = torch.cat([naive_logits(model, prompt, row) for row in completions])  # (sum of T, V)
        log_p = token_distribution(logits, 1.0, banned)
        return log_p.gather(-1, torch.cat([*completions])[:, None])[:, 0]

    with own_forwards(model):
        with autocast:
            own = compute()
        if dtype == torch.float32:
            return own, 0.0
        with float32_layers(model):
            return own, float((own - compute()).abs().mean())


@contextmanager
def float32_layers(model: nn.Module) -> Iterator[None]:
    """Compute in float32 in the context, converting the weights of each layer only while it runs.

    Layers in four bits keep their weights and dequantise them to float32.
    """
    originals: dict[nn.Parameter, Tensor] = {}

    def convert(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        for parameter in module.parameters(recurse=False):
            if parameter.is_floating_point():
                originals[parameter] = parameter.data
                parameter.data = parameter.data.float()
        return tuple(x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for x in args)

    def restore(module: nn.Module, _: Any, __: Any) -> None:
        for parameter in module.parameters(recurse=False):
            if parameter in originals:
                parameter.data = originals.pop(parameter)

    leaves = [module for module in model.modules() if [*module.parameters(recurse=False)]]
    hooks = [hook for m in leaves for hook in (m.register_forward_pre_hook(convert), m.register_forward_hook(restore))]
    try:
        with four_bits_computing_in(model, torch.float32):
            yield
    finally:
        for hook in hooks:
            hook.remove()
