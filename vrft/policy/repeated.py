"""A prompt repeated for each of its completions: the fallback of `shared_prefix`, and what it is checked against."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from vrft.policy.prompts import PER_TOKEN, ImageFeatures, Prompt, encode_images


def with_tokens(prompt: Prompt, tokens: Tensor, mask: Tensor) -> dict[str, Any]:
    """The prompt's entries per token with text behind them: n prompts, tokens and mask (n, T)."""
    tails = {"input_ids": tokens, "attention_mask": mask}
    return {
        key: torch.cat([prompt[key].expand(len(tokens), -1), tails.get(key, torch.zeros_like(tokens))], 1)
        for key in PER_TOKEN
        if key in prompt
    }


def repeated_hidden_states(
    model: PreTrainedModel, prompts: Sequence[Prompt], ids: Tensor, lengths: Sequence[int]
) -> Tensor:
    """As `shared_prefix.group_hidden_states`, for models that can't share a prompt: text G times, images once."""
    group = len(lengths) // len(prompts)
    parts = []
    for p, prompt in enumerate(prompts):
        rows = slice(p * group, (p + 1) * group)
        longest = max(*lengths[rows], 1)
        mask = torch.arange(longest) < torch.tensor(lengths[rows])[:, None]
        mask = mask.to(ids.device)  # (G, n)
        features = ImageFeatures.join([encode_images(model, prompt)] * group)
        grids = {key: value.repeat(group, 1) for key, value in prompt.items() if key.endswith("_grid_thw")}
        hidden = model.base_model(
            **with_tokens(prompt, ids[rows, :longest], mask.long()),
            **grids,
            mm_encoder_outputs=features.for_model(),
            use_cache=False,
        ).last_hidden_state[:, -longest - 1 : -1]
        parts.append(hidden[mask])
    return torch.cat(parts)


def naive_logits(model: PreTrainedModel, prompt: Prompt, completion: Tensor) -> Tensor:
    """Logits (T, V) of one completion (T,) by nothing but the model's own forward of text and pixels."""
    rows = with_tokens(prompt, completion[None], torch.ones_like(completion)[None])
    images = {key: value for key, value in prompt.items() if key not in PER_TOKEN}
    return model(**rows, **images, use_cache=False).logits[0, -len(completion) - 1 : -1]


@contextmanager
def float32_layers(model: nn.Module) -> Iterator[None]:
    """Compute in float32 whatever the weights are: each layer's are converted while it runs, not all at once."""
    originals: dict[nn.Parameter, Tensor] = {}

    def convert(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        for parameter in module.parameters(recurse=False):
            originals[parameter] = parameter.data
            parameter.data = parameter.data.float()
        return tuple(x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for x in args)

    def restore(module: nn.Module, _: Any, __: Any) -> None:
        for parameter in module.parameters(recurse=False):
            parameter.data = originals.pop(parameter)

    leaves = [module for module in model.modules() if [*module.parameters(recurse=False)]]
    hooks = [hook for m in leaves for hook in (m.register_forward_pre_hook(convert), m.register_forward_hook(restore))]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
