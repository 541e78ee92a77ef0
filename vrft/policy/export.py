"""Export of a trained policy to a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vrft.errors import ConfigurationError
from vrft.policy.image_size import apply_to_config, config_fields, limited_fields, write_fields
from vrft.policy.lora import add_adapters
from vrft.policy.pretrained import TRUST_REMOTE_CODE_HINT, load_pretrained, token_ids, vision_parameters
from vrft.policy.processor import copy_processor, load_processor
from vrft.policy.vlm import Policy
from vrft.utils.hub import bars_if_large, loading

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel

EXPORT_STEPS = 4
"""The base is read, the trained weights are loaded into it, the model is written, the processor is written."""


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
    """Write a folder for `from_pretrained`, with a generation config that reproduces the evaluated answers.

    Adapters are merged into the weights, and saved under `adapter/` as well.

    Args:
        policy: the base and how it was trained; it need not be loaded.
        folder: folder to create.
        weights: trained weights by their name in the model, as `Policy.trained_weights` returns them.
        max_new_tokens: limit for an answer.
        adapter_alone: write only the adapter, directly to the folder.
        dtype: dtype of the weights; default: the base's dtype or that of the computation, whichever is more precise.
        advance: called with the number of completed steps, up to `EXPORT_STEPS`.

    Raises:
        ConfigurationError: the weights do not match the policy's trained parameters, or an adapter alone can't hold
            the policy's limits for images.
    """
    processor, fields, model, base_dtype = read_base(policy, adapter_alone)
    generation = greedy_generation(model, processor.tokenizer, max_new_tokens)
    advance(1)
    if policy.lora is None:
        fill(model, weights, {*vision_parameters(model)} if policy.freeze_vision else set())
    else:
        adapted = add_adapters(model, policy.lora)
        fill(adapted, weights, set())
        adapted.save_pretrained(folder if adapter_alone else folder / "adapter")  # type: ignore[operator]
        model = adapted.merge_and_unload()  # type: ignore[operator]
    advance(2)
    if not adapter_alone:
        model.generation_config = generation
        keep_published_layout(model)
        precise = torch.promote_types(base_dtype, policy.dtype)
        with bars_if_large(policy.checkpoint):
            model.to(dtype or precise).save_pretrained(folder)
    advance(3)
    copy_processor(policy.checkpoint, folder)
    write_fields(folder, fields)
    mode = next(folder.glob("*.json")).stat().st_mode
    for weights_file in folder.rglob("*.safetensors"):  # safetensors makes them readable by the owner alone
        weights_file.chmod(mode)
    advance(EXPORT_STEPS)


def read_base(policy: Policy, adapter_alone: bool) -> tuple[Any, dict[str, Any], PreTrainedModel, torch.dtype]:
    """Return a policy's processor, the fields of its image processor that limits change, its base, and its dtype.

    Raises:
        ConfigurationError: an adapter alone can't hold the limits.
    """
    from transformers import AutoConfig

    with loading("model.policy.checkpoint", policy.checkpoint, TRUST_REMOTE_CODE_HINT, policy.trust_remote_code):
        processor = load_processor(policy.checkpoint, policy.trust_remote_code)
        config = AutoConfig.from_pretrained(policy.checkpoint, trust_remote_code=policy.trust_remote_code)
        fields = limited_fields(processor.image_processor, policy.limits)
        if adapter_alone and (repeated := config_fields(fields)):
            raise ConfigurationError(
                f"export: --adapter: model.policy.max_tiles changes {', '.join(repeated)} in the model's config.json, "
                "which an adapter does not have; leave out --adapter to export the merged model"
            )
        model = load_pretrained(policy.checkpoint, torch.float32, policy.trust_remote_code)
    apply_to_config(model.config, fields)
    return processor, fields, model, config.dtype or torch.float32


def fill(model: nn.Module, weights: Mapping[str, Tensor], frozen: set[nn.Parameter]) -> None:
    """Replace weights of the base by the trained ones. `frozen`: parameters that may be missing.

    Raises:
        ConfigurationError: a trained parameter is missing, is unknown to the model, or has another shape.
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


def keep_published_layout(model: PreTrainedModel) -> None:
    """Let `save_pretrained` transpose the experts of Qwen3-VL-MoE back, as vLLM and transformers 4 read them.

    Loading transposes weights whose shape is not that of the model. Saving reverses that with the same condition, which
    never holds for the model's own weights.
    """
    from transformers.core_model_loading import Transpose, WeightConverter

    for conversion in model._weight_conversions or ():
        if isinstance(conversion, WeightConverter):
            for operation in conversion.operations:
                if isinstance(operation, Transpose):
                    operation.check_dims = False


def greedy_generation(model: PreTrainedModel, tokenizer: object, max_new_tokens: int) -> GenerationConfig:
    """Return the settings with which `generate` reproduces the evaluated answers: greedy, the same banned tokens."""
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
