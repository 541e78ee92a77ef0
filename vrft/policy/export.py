"""Export a trained policy to a Hugging Face folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vrft.errors import ConfigurationError
from vrft.indices import buckets
from vrft.policy.checkpoint_files import INDEX_FILE, SINGLE_FILE
from vrft.policy.four_bits import compute_in, published_in_four_bits
from vrft.policy.image_size import apply_to_config, config_fields, limited_fields, write_fields
from vrft.policy.lora import add_adapters, has_adapter, merged_weight
from vrft.policy.pretrained import TRUST_REMOTE_CODE_HINT, exact_dtype, load_pretrained, token_ids, vision_parameters
from vrft.policy.processor import copy_processor
from vrft.policy.vlm import Policy
from vrft.policy.whole_modules import copies_by_original
from vrft.utils.hub import bars_if_large, loading
from vrft.utils.processors import load_processor

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel

FILE_BYTES = 4 * 10**9
"""Maximum size of a file of weights, which is kept in memory while it is written."""

EXPORT_STEPS = 4
"""Steps: read the base, load the trained weights, write the model, write the processor."""


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
        policy: the policy, with the base and its settings; it need not be loaded.
        folder: folder to create.
        weights: trained weights by name in the model, as returned by `Policy.trained_weights`.
        max_new_tokens: maximum number of tokens in an answer.
        adapter_alone: write only the adapter, directly to the folder.
        dtype: dtype of the weights; default: the base's dtype or the compute dtype, whichever is more precise.
        advance: called with the number of completed steps, up to `EXPORT_STEPS`.

    Raises:
        ConfigurationError: the weights do not match the policy's trained parameters, or `adapter_alone` is set although
            an adapter can't contain the policy's limits on image size.
    """
    processor, fields, model, base_dtype = read_base(policy, adapter_alone)
    generation = greedy_generation(model, processor.tokenizer, max_new_tokens)
    dtype = dtype or torch.promote_types(base_dtype, policy.dtype)
    keep_published_layout(model)
    advance(1)
    if policy.lora is None:
        fill(model, weights, {*vision_parameters(model)} if policy.freeze_vision else set())
        advance(2)
        model.generation_config = generation
        with bars_if_large(policy.folder):
            model.to(dtype).save_pretrained(folder)
    else:
        published = published_weights(model)
        adapted = add_adapters(model, policy.lora)
        fill(adapted, weights, set())
        adapted.save_pretrained(folder if adapter_alone else folder / "adapter")  # type: ignore[operator]
        advance(2)
        if not adapter_alone:
            model.generation_config = generation
            with bars_if_large(policy.folder):
                save_merged(model, published, folder, dtype)
    advance(3)
    copy_processor(policy.folder, folder)
    write_fields(folder, fields)
    mode = next(folder.glob("*.json")).stat().st_mode
    for weights_file in folder.rglob("*.safetensors"):  # safetensors makes files readable only by the owner
        weights_file.chmod(mode)
    advance(EXPORT_STEPS)


def read_base(policy: Policy, adapter_alone: bool) -> tuple[Any, dict[str, Any], PreTrainedModel, torch.dtype]:
    """Return a policy's processor, the image processor's fields for its limits, its base, and the dtype of the weights.

    Raises:
        ConfigurationError: `adapter_alone` is set, but an adapter can't contain the limits.
    """
    from transformers import AutoConfig

    with loading("model.policy.checkpoint", policy.checkpoint, TRUST_REMOTE_CODE_HINT, policy.trust_remote_code):
        processor = load_processor(policy.folder, policy.trust_remote_code)
        config = AutoConfig.from_pretrained(policy.folder, trust_remote_code=policy.trust_remote_code)
        fields = limited_fields(processor.image_processor, policy.limits)
        if adapter_alone and (repeated := config_fields(fields)):
            raise ConfigurationError(
                f"export: --adapter: model.policy.max_tiles changes {', '.join(repeated)} in the model's config.json, "
                "which an adapter does not have; leave out --adapter to export the merged model"
            )
        # adapters are merged in float32, one weight at a time; other weights stay memory-mapped
        read = torch.float32 if policy.lora is None else exact_dtype(policy.folder, torch.bfloat16)
        model = load_pretrained(policy.folder, read, policy.trust_remote_code)
        model.name_or_path = policy.checkpoint  # an adapter names it as its base
        if published_in_four_bits(policy.folder):
            compute_in(model, torch.bfloat16)
            model = model.dequantize(torch.bfloat16)
    apply_to_config(model.config, fields)
    return processor, fields, model, config.dtype or torch.float32


def fill(model: nn.Module, weights: Mapping[str, Tensor], frozen: set[nn.Parameter]) -> None:
    """Replace weights of the base by trained weights. `frozen`: parameters that may be missing in `weights`.

    Raises:
        ConfigurationError: a trained parameter is missing, is unknown to the model, or has another shape.
    """
    trained = {name for name, p in model.named_parameters() if p.requires_grad and p not in frozen}
    if missing := sorted(trained - weights.keys()):
        raise ConfigurationError(f"ckpt: made with other model settings: it lacks {missing[0]!r}")
    try:
        unexpected = model.load_state_dict(weights, strict=False).unexpected_keys
    except RuntimeError as error:  # a weight has another shape
        raise ConfigurationError(f"ckpt: made with other model settings: {error}") from error
    if unexpected:
        raise ConfigurationError(f"ckpt: made with other model settings: it has {unexpected[0]!r}")


def published_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return a model's weights under the names in its published checkpoint, without duplicates of tied weights."""
    from transformers.core_model_loading import revert_weight_conversion

    places: set[tuple[int, torch.Size]] = set()
    weights: dict[str, Tensor] = {}
    for name, weight in model.state_dict().items():
        place = weight.data_ptr(), weight.shape
        if place not in places:
            places.add(place)
            weights[name] = weight
    converted: dict[str, Tensor] = revert_weight_conversion(model, weights)
    return converted


@torch.no_grad()
def save_merged(model: PreTrainedModel, published: Mapping[str, Tensor], folder: Path, dtype: torch.dtype) -> None:
    """Write a model with merged adapters and trained modules, keeping the weights of one file at a time in memory.

    Args:
        model: the model with adapters.
        published: the weights of the base, from `published_weights`.
        folder: folder to write to.
        dtype: dtype of the written weights.

    Raises:
        ConfigurationError: the layout of a trained weight in files differs from that in the model.
    """
    adapters = {m.get_base_layer().weight.data_ptr(): m for m in model.modules() if has_adapter(m)}
    copies = {original.data_ptr(): copy for original, copy in copies_by_original(model)}
    if odd := len((adapters.keys() | copies.keys()) - {weight.data_ptr() for weight in published.values()}):
        raise ConfigurationError(
            f"export: {odd} trained weights of a {model.config.model_type} are stored in another form, "
            "so they can't be merged; export the adapter alone: --adapter"
        )
    model.save_pretrained(folder, state_dict={})  # config and code, without weights
    (folder / SINGLE_FILE).unlink(missing_ok=True)
    model.config.dtype = dtype
    model.config.save_pretrained(folder)
    names = list(published)
    sizes = [weight.numel() * dtype.itemsize for weight in published.values()]
    files = [names[part] for part in buckets(sizes, FILE_BYTES)]
    index: dict[str, str] = {}
    for number, chosen in enumerate(files, start=1):
        file = SINGLE_FILE if len(files) == 1 else f"model-{number:05}-of-{len(files):05}.safetensors"
        weights = {}
        for name in chosen:
            weight = published[name]
            if (layer := adapters.get(weight.data_ptr())) is not None:
                weight = merged_weight(layer)
            weight = copies.get(published[name].data_ptr(), weight)
            weights[name] = weight.to(dtype if weight.is_floating_point() else weight.dtype).contiguous()
        save_file(weights, folder / file, {"format": "pt"})
        index |= dict.fromkeys(chosen, file)
    if len(files) > 1:
        total = sum(weight.numel() for weight in published.values())
        content = {"metadata": {"total_parameters": total, "total_size": total * dtype.itemsize}, "weight_map": index}
        (folder / INDEX_FILE).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def keep_published_layout(model: PreTrainedModel) -> None:
    """Make `save_pretrained` transpose the experts of Qwen3-VL-MoE back to the layout of vLLM and transformers 4.

    Loading transposes weights whose shape differs from the model's. Saving reverses this under the same condition,
    which never holds for the model's weights.
    """
    from transformers.core_model_loading import Transpose, WeightConverter

    conversions = vars(model).get("_weight_conversions")  # absent after dequantisation
    for conversion in conversions or ():
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
