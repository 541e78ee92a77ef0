"""A trained policy as a Hugging Face folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vrft.errors import ConfigurationError
from vrft.policy.processor import copy_processor, load_processor
from vrft.policy.vlm import TRUST, Policy, token_ids, vision_parameters
from vrft.utils.hub import loading

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel

STEPS = 4
"""What `advance` is told of: the base is read, weights are in it, the model is written, and its processor."""


def export_policy(
    policy: Policy,
    folder: Path,
    weights: Mapping[str, Tensor],
    max_new_tokens: int,
    *,
    adapter_alone: bool = False,
    dtype: torch.dtype | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> None:
    """Write what `from_pretrained` loads, with a generation config that gives the answers that were evaluated.

    Adapters are merged into the weights, and stand under `adapter/` as well. The policy needn't be loaded.

    Args:
        policy: names the base and how it was trained.
        folder: is made.
        weights: what trained, by its name in the model, as `Policy.trained_weights` gives it.
        max_new_tokens: of an answer.
        adapter_alone: write the adapter to the folder, and no model.
        dtype: of the weights; default: that in which the base came or that of the computation, the more exact of both.
        advance: told how many of `STEPS` are done.

    Raises:
        ConfigurationError: the weights are not those that train in this policy.
    """
    from transformers import AutoConfig

    with loading("model.policy.checkpoint", policy.checkpoint, TRUST):
        processor = load_processor(policy.checkpoint, policy.trust_remote_code)
        came_in = AutoConfig.from_pretrained(policy.checkpoint, trust_remote_code=policy.trust_remote_code).dtype
        model = policy.pretrained(torch.float32)
    generation = greedy_generation(model, processor.tokenizer, max_new_tokens)
    advance(1)
    if policy.lora is None:
        fill(model, weights, {*vision_parameters(model)} if policy.freeze_vision else set())
    else:
        adapted = policy.with_adapters(model, policy.lora)
        fill(adapted, weights, set())
        adapted.save_pretrained(folder if adapter_alone else folder / "adapter")  # type: ignore[operator]
        model = adapted.merge_and_unload()  # type: ignore[operator]
    advance(2)
    if not adapter_alone:
        model.generation_config = generation
        exact = torch.promote_types(came_in or torch.float32, policy.dtype)
        model.to(dtype or exact).save_pretrained(folder)
    advance(3)
    copy_processor(policy.checkpoint, folder)
    set_pixels(folder, policy.pixels)
    mode = next(folder.glob("*.json")).stat().st_mode
    for weights_file in folder.rglob("*.safetensors"):  # which safetensors lets nobody else read
        weights_file.chmod(mode)
    advance(STEPS)


def fill(model: nn.Module, weights: Mapping[str, Tensor], frozen: set[nn.Parameter]) -> None:
    """Put trained weights in the place of the base's.

    Raises:
        ConfigurationError: one is missing, or has no place.
    """
    trained = {name for name, p in model.named_parameters() if p.requires_grad and p not in frozen}
    if missing := sorted(trained - weights.keys()):
        raise ConfigurationError(f"ckpt: made with other model settings: it lacks {missing[0]!r}")
    try:
        unexpected = model.load_state_dict(weights, strict=False).unexpected_keys
    except RuntimeError as error:  # of another shape
        raise ConfigurationError(f"ckpt: made with other model settings: {error}") from error
    if unexpected:
        raise ConfigurationError(f"ckpt: made with other model settings: it has {unexpected[0]!r}")


def greedy_generation(model: PreTrainedModel, tokenizer: object, max_new_tokens: int) -> GenerationConfig:
    """With these, `generate` gives the answers that were evaluated: no sampling, no penalty, the same tokens."""
    from transformers import GenerationConfig

    stop, banned = token_ids(model, tokenizer)
    base = model.generation_config
    return GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=stop,
        suppress_tokens=banned,
        bos_token_id=base.bos_token_id,
        pad_token_id=stop[0] if base.pad_token_id is None else base.pad_token_id,
    )


def set_pixels(folder: Path, pixels: Mapping[str, int | None]) -> None:
    """Let the processor resize images as it did in training."""
    chosen = {edge: value for edge, value in pixels.items() if value is not None}
    if not chosen:
        return
    for path in (folder / "preprocessor_config.json", folder / "processor_config.json"):
        if path.exists():
            content = json.loads(path.read_text())
            settings = content if path.name.startswith("pre") else content.get("image_processor", {})
            if "size" in settings:
                settings["size"] |= chosen
                for edge, old in (("shortest_edge", "min_pixels"), ("longest_edge", "max_pixels")):
                    if old in settings:
                        settings[old] = settings["size"][edge]
                path.write_text(json.dumps(content, indent=2) + "\n")
