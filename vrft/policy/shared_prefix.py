"""One prompt, G completions, one forward, on unmodified Hugging Face models.

The prompt's images and tokens are computed once; the completions stand behind it in the same row,
`[prompt | completion 1 | … | completion G]`, and are kept apart in attention alone. Prefix sharing is known from
PrefixGrouper (arXiv 2506.05433); this one is written for images: rotary positions with three axes, sliding windows and
bidirectional image blocks are the model's own.

P prompts, G completions each, N = P * G, L prompt tokens, T completion tokens, H hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import create_masks_for_generate, sdpa_mask

from vrft.errors import ConfigurationError

ATTENTION = "vrft_shared_prefix"
PER_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
"""Keys of a processor's output that have one entry per token; the others describe images."""

SHAREABLE = {"full_attention", "sliding_attention"}


def shared_prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    shared_prefix: tuple[int, int, bool] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of rows `[prompt | c1 | … | cG]`: plain sdpa unless `shared_prefix` = (L, G, causal) is given.

    The prompt attends to itself; each completion, folded into the batch, to the prompt and itself.

    Args:
        module: the attention layer.
        query: (P, heads, L + G * n, dim).
        key: as `query`, possibly with fewer heads.
        value: as `key`.
        attention_mask: the model's mask of one sequence `[prompt | completion]`, (P or 1, 1, L + n, L + n).
        shared_prefix: L, G, and whether the mask is plainly causal and not needed.
        **kwargs: handed on to sdpa.

    Returns:
        (P, L + G * n, heads, dim) and no weights.
    """
    if shared_prefix is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    length, group, causal = shared_prefix
    query, key = query.to(value.dtype), key.to(value.dtype)  # as autocast does in sdpa, but not before a causal bias

    def fold(x: Tensor) -> Tensor:  # (P, heads, L + G n, dim) -> (N, heads, n, dim)
        return x[:, :, length:].unflatten(2, (group, -1)).transpose(1, 2).flatten(0, 1)

    def behind_prompt(x: Tensor) -> Tensor:  # -> (N, heads, L + n, dim)
        return torch.cat([x[:, :, :length].repeat_interleave(group, 0), fold(x)], 2)

    q, k, v = fold(query), behind_prompt(key), behind_prompt(value)
    prompt_mask: Tensor | None = None
    completion_mask: Any = causal_lower_right(q.shape[2], k.shape[2])
    if not causal:
        assert attention_mask is not None
        prompt_mask, completion_mask = attention_mask[..., :length, :length], attention_mask[..., length:, :]
        if len(attention_mask) > 1:
            completion_mask = completion_mask.repeat_interleave(group, 0)
    heads = (x[:, :, :length] for x in (query, key, value))
    prompt, _ = sdpa_attention_forward(module, *heads, prompt_mask, **kwargs)
    completions, _ = sdpa_attention_forward(module, q, k, v, completion_mask, **kwargs)
    completions = completions.unflatten(0, (-1, group)).flatten(1, 2)  # (N, n, …) -> (P, G n, …)
    return torch.cat([prompt, completions], 1), None


AttentionInterface.register(ATTENTION, shared_prefix_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def share_prefixes(model: PreTrainedModel) -> None:
    """Switch the text model's attention; without a `shared_prefix` argument it goes on as sdpa.

    Raises:
        ConfigurationError: layers are recurrent, so that one row can't hold several completions.
    """
    layers = set(getattr(model.config.get_text_config(), "layer_types", None) or ["full_attention"])
    if not layers <= SHAREABLE:
        raise ConfigurationError(
            f"model.policy.checkpoint: {type(model).__name__} has {', '.join(sorted(layers - SHAREABLE))} layers, "
            "which can't share a prompt between completions"
        )
    model.set_attn_implementation({"text_config": ATTENTION})


def positions(model: PreTrainedModel, inputs: dict[str, Tensor], n: int) -> tuple[Tensor, Tensor]:
    """Rotary positions of the prompts (…, P, L) and of n tokens behind them (…, P, n); M-RoPE has 3 axes in front."""
    if "mm_token_type_ids" in inputs and (rope := getattr(model.base_model, "get_rope_index", None)) is not None:
        prompt = rope(**inputs)[0]
    else:
        prompt = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    last = prompt.amax(-1, keepdim=True)
    if last.ndim == 3:
        last = last.amax(0, keepdim=True).expand_as(last)  # text goes on behind the largest of the three axes
    return prompt, last + 1 + torch.arange(n, device=prompt.device)


def group_hidden_states(model: PreTrainedModel, inputs: dict[str, Tensor], ids: Tensor, group: int) -> Tensor:
    """Hidden states (N, T, H) that predict `ids` (N, T), each prompt computed once.

    Args:
        model: a Hugging Face model after `share_prefixes`.
        inputs: the processor's output for P left-padded prompts.
        ids: completions, right-padded (N, T); row p * group + g belongs to prompt p.
        group: G.
    """
    num_tokens = ids.shape[1]
    if num_tokens == 1:
        ids = F.pad(ids, (0, 1))  # one token leaves nothing to fold; the extra column is dropped below
    prompts, length = inputs["input_ids"].shape
    n = ids.shape[1] - 1  # the last token is predicted but predicts nothing
    mask = _single_sequence_mask(model, inputs, n)
    before, after = positions(model, inputs, n)
    hidden = model.base_model(
        input_ids=torch.cat([inputs["input_ids"], ids[:, :-1].reshape(prompts, group * n)], 1),
        position_ids=torch.cat([before, *[after] * group], -1),
        attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=ids.device) if mask is None else mask,
        shared_prefix=(length, group, mask is None),
        use_cache=False,
        **{key: value for key, value in inputs.items() if key not in PER_TOKEN},
    ).last_hidden_state  # (P, L + G n, H)
    first = hidden[:, None, length - 1 : length].expand(
        -1, group, -1, -1
    )  # the prompt's end predicts every first token
    rest = hidden[:, length:].unflatten(1, (group, n))
    return torch.cat([first, rest], 2).flatten(0, 1)[:, :num_tokens]


def _single_sequence_mask(model: PreTrainedModel, inputs: dict[str, Tensor], n: int) -> Any:
    """The model's mask of `[prompt | n tokens]`: 4-D, or a dict of them by layer type; None if plainly causal."""
    prompts, length = inputs["input_ids"].shape
    device = inputs["input_ids"].device
    build = getattr(model, "create_masks_for_generate", create_masks_for_generate)
    masks = build(
        config=model.config,
        inputs_embeds=torch.empty((prompts, length + n, 0), dtype=model.dtype, device=device),
        attention_mask=F.pad(inputs["attention_mask"], (0, n), value=1),
        past_key_values=None,
        position_ids=None,
        **{key: F.pad(inputs[key], (0, n)) for key in ("token_type_ids", "mm_token_type_ids") if key in inputs},
    )
    by_layer = masks if isinstance(masks, dict) else {"full_attention": masks}
    if all(mask is None for mask in by_layer.values()):
        return None
    causal = torch.ones(length + n, length + n, dtype=torch.bool, device=device).tril()[None, None]
    by_layer = {kind: causal if mask is None else mask for kind, mask in by_layer.items()}
    return by_layer if len(by_layer) > 1 else next(iter(by_layer.values()))
