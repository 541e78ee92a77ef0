"""Small random checkpoints of real architectures with their real processors, in the Hub's format."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedTokenizerFast

FAMILIES = (
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "gemma3",
    "internvl",
    "llava_onevision",
    "idefics3",
    "smolvlm",
    "qwen3_5",
    "llava_onevision+lfm2",
    "llava_onevision+granitemoehybrid",
)
"""Model types; after a plus sign, that of the language model."""
RECURRENT = FAMILIES[-3:]
"""Families with gated delta nets, short convolutions and Mamba-2."""
MIXTURES = ("qwen3_vl_moe", "qwen3_5_moe")
"""Families with mixtures of experts, the second one with gated delta nets too."""
WORDS = [
    *[
        "find",
        "the",
        "red",
        "box",
        "left",
        "of",
        "a",
        "blue",
        "dog",
        "and",
        "say",
        "why",
        "it",
        "is",
        "there",
        "user",
        "assistant",
        ":",
        ".",
        "yes",
        "no",
    ]
]
SPECIAL = ["<pad>", "<end>", "<stop>", "<image>", "<video>", "<start_image>", "<end_image>"]
IDEFICS = ["<fake_token_around_image>", "<end_of_utterance>", "<global-img>"] + [
    f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7)
]
MEAN = {"image_mean": [0.5] * 3, "image_std": [0.3] * 3}
WIDTH, LAYERS = 32, 3

TEXT = {
    "vocab_size": 128,
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 2048,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
SIGLIP = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}


def write(folder: Path, family: str) -> str:
    """Write config, safetensors, tokenizer and processor of a family, and return the folder's name."""
    tokenizer(folder, family)
    config, processor = settings(family)
    config["tie_word_embeddings"] = False
    (folder / "preprocessor_config.json").write_text(json.dumps(MEAN | processor["image"]))
    if "video" in processor:
        (folder / "video_preprocessor_config.json").write_text(json.dumps(MEAN | processor["video"]))
    (folder / "processor_config.json").write_text(json.dumps(processor["processor"]))
    with torch.random.fork_rng():
        torch.manual_seed(0)  # of the decays in recurrent layers
        model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(family.partition("+")[0], **config))
    generator, bias_generator = torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        # Models with the usual random weights hardly depend on their input: large weights reveal a wrong mask or
        # position. In recurrent layers they would magnify rounding.
        if parameter.ndim >= 2:
            scale = 0.5 if "lm_head" in name else 0.5 if family in (*RECURRENT, "qwen3_5_moe") else 1.2
            inputs = parameter.shape[-1] if "experts" in name else parameter[0].numel()
            std = 1.0 if "embed" in name else scale * inputs**-0.5
            torch.nn.init.normal_(parameter, 0, std, generator=generator)
        elif name.endswith(".bias"):  # zeros would hide a bias that is left out
            torch.nn.init.normal_(parameter, 0, 0.02, generator=bias_generator)
    model.generation_config.eos_token_id = [1, 2]
    model.generation_config.pad_token_id = 0
    model.save_pretrained(folder)
    return str(folder)


def written_once(factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Return a function that returns the folder of a family's checkpoint, which it writes on the first call."""

    @cache
    def folder(family: str) -> str:
        return write(factory.mktemp(family), family)

    return folder


def write_key_biases(checkpoint: str, folder: Path, std: float) -> str:
    """Write a copy of a checkpoint with random biases of keys, and return its folder's name."""
    shutil.copytree(checkpoint, folder, dirs_exist_ok=True)
    file, generator = folder / "model.safetensors", torch.Generator().manual_seed(5)
    weights = load_file(file)
    for name in weights:
        if name.endswith("k_proj.bias"):
            weights[name].normal_(0, std, generator=generator)
    save_file(weights, file, metadata={"format": "pt"})
    return str(folder)


def tokenizer(folder: Path, family: str) -> None:
    special = SPECIAL + (IDEFICS if family in ("idefics3", "smolvlm") else [])
    if family.startswith("qwen"):
        special = [*SPECIAL[:3], "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
    core = Tokenizer(models.WordLevel({t: i for i, t in enumerate([*special, *WORDS, "[UNK]"])}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.decoder = decoders.Fuse()
    core.add_special_tokens(special)
    named = {
        "gemma3": {"boi_token": "<start_image>", "eoi_token": "<end_image>", "image_token": "<image>"},
        "internvl": {
            "start_image_token": "<start_image>",
            "end_image_token": "<end_image>",
            "context_image_token": "<image>",
            "video_token": "<video>",
        },
    }
    fast = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="<end>",
        unk_token="[UNK]",
        additional_special_tokens=special,
        extra_special_tokens=named.get(family, {}),
    )
    fast.chat_template = (
        "{% for m in messages %}{{ m.role }} : {% for part in m.content %}"
        "{{ part.text if part.type == 'text' else '" + placeholder(family) + "' }} {% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}assistant : {% endif %}"
    )
    fast.save_pretrained(folder)


def placeholder(family: str) -> str:
    """Return the text of an image in a prompt before the processor expands it."""
    if family.startswith("qwen"):
        return "<|vision_start|><|image_pad|><|vision_end|>"
    return "<start_image>" if family == "gemma3" else "<image>"


def settings(family: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return the arguments of the model's configuration, and the processor's files."""
    if family.startswith("qwen"):
        return _qwen(family)
    tie = {"tie_word_embeddings": False}
    if family == "gemma3":
        text = TEXT | {"sliding_window": 12, "sliding_window_pattern": 3, "query_pre_attn_scalar": 8} | tie
        text["layer_types"] = ["sliding_attention", "full_attention", "sliding_attention"]
        config = {"text_config": text, "vision_config": SIGLIP | {"image_size": 56}, "mm_tokens_per_image": 4}
        ids = {"image_token_index": 3, "boi_token_index": 5, "eoi_token_index": 6}
        image = {"image_processor_type": "Gemma3ImageProcessor", "size": {"height": 56, "width": 56}}
        return config | ids, {
            "image": image,
            "processor": {"processor_class": "Gemma3Processor", "image_seq_length": 4},
        }
    if family == "internvl":
        vision = SIGLIP | {"image_size": [28, 28], "patch_size": [7, 7]}
        config = {"text_config": TEXT | {"model_type": "qwen2"} | tie, "vision_config": vision, "image_token_id": 3}
        image = {
            "image_processor_type": "GotOcr2ImageProcessor",
            "size": {"height": 28, "width": 28},
            "crop_to_patches": True,
            "max_patches": 3,
            "min_patches": 1,
        }
        video = {"video_processor_type": "InternVLVideoProcessor", "size": {"height": 28, "width": 28}}
        processor = {"processor_class": "InternVLProcessor", "image_seq_length": 4}
        return config | {"image_seq_length": 4}, {"image": image, "video": video, "processor": processor}
    if family.startswith("llava_onevision"):
        vision = SIGLIP | {"model_type": "siglip_vision_model", "vision_use_head": False}
        grids = [[28, 28], [28, 56], [56, 28]]
        config = {
            "text_config": TEXT | _language_model(family.partition("+")[2] or "qwen2") | tie,
            "vision_config": vision,
            "image_token_index": 3,
            "video_token_index": 4,
            "image_grid_pinpoints": grids,
        }
        image = {
            "image_processor_type": "LlavaOnevisionImageProcessor",
            "size": {"height": 28, "width": 28},
            "image_grid_pinpoints": grids,
        }
        video = {"video_processor_type": "LlavaOnevisionVideoProcessor", "size": {"height": 28, "width": 28}}
        processor = {
            "processor_class": "LlavaOnevisionProcessor",
            "num_image_tokens": 4,
            "vision_feature_select_strategy": "full",
        }
        return config, {"image": image, "video": video, "processor": processor}
    name = "Idefics3" if family == "idefics3" else "SmolVLM"
    text = TEXT | {"model_type": "llama"} | tie
    config = {"text_config": text, "vision_config": SIGLIP, "image_token_id": 3, "scale_factor": 2}
    image = {
        "image_processor_type": f"{name}ImageProcessor",
        "size": {"longest_edge": 56},
        "max_image_size": {"longest_edge": 28},
        "do_image_splitting": True,
    }
    files = {"image": image, "processor": {"processor_class": f"{name}Processor", "image_seq_len": 1}}
    if family == "smolvlm":
        files["video"] = image | {"video_processor_type": "SmolVLMVideoProcessor"}
    return config, files


def _language_model(kind: str) -> dict[str, Any]:
    if kind == "lfm2":
        recurrent = {"layer_types": ["conv", "full_attention", "conv"], "block_auto_adjust_ff_dim": False}
    elif kind == "granitemoehybrid":
        recurrent = {"layer_types": ["linear_attention", "full_attention", "linear_attention"], "mamba_n_heads": 4}
        recurrent |= {"mamba_d_state": 8, "mamba_chunk_size": 8, "shared_intermediate_size": 48}
        recurrent |= {"num_local_experts": 0, "num_experts_per_tok": 0, "position_embedding_type": "rope"}
    elif kind == "gemma3n_text":  # its last two layers have no keys and values of their own
        recurrent = {"num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2}
        recurrent |= {"num_kv_shared_layers": 2, "sliding_window": 12, "intermediate_size": [64] * 4}
        recurrent |= {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 128, "laurel_rank": 4}
        recurrent |= {"activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0]}
    else:
        recurrent = {}
    return {"model_type": kind} | recurrent


def _qwen(family: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    dense = family.removesuffix("_moe")
    name = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL", "qwen3_5": "Qwen3VL"}[dense]
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    text: dict[str, Any] = TEXT | {"rope_parameters": rope, "tie_word_embeddings": False}
    vision: dict[str, Any] = {"depth": 2, "num_heads": 4, "patch_size": 14, "spatial_merge_size": 2}
    vision["temporal_patch_size"] = 2
    if family == "qwen2_vl":
        vision |= {"embed_dim": WIDTH, "hidden_size": WIDTH, "mlp_ratio": 2}
    elif family == "qwen2_5_vl":
        vision |= {"hidden_size": WIDTH, "out_hidden_size": WIDTH, "intermediate_size": 48, "window_size": 56}
        vision["fullatt_block_indexes"] = [1]
    else:
        vision |= {"hidden_size": WIDTH, "out_hidden_size": WIDTH, "intermediate_size": 48}
        vision |= {"num_position_embeddings": 16}
        rope["mrope_interleaved"] = True
    if dense == "qwen3_vl":
        vision["deepstack_visual_indexes"] = [0, 1]
    if dense == "qwen3_5":
        text |= {"layer_types": ["linear_attention", "full_attention", "linear_attention"]}
        text |= {"linear_num_value_heads": 4, "linear_num_key_heads": 2}
        text |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8}
        text["head_dim"] = 16
        rope["partial_rotary_factor"] = 0.5
    if family in MIXTURES:
        text |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
        text |= {"shared_expert_intermediate_size": 16} if dense == "qwen3_5" else {"mlp_only_layers": [1]}
    ids = {"image_token_id": 3, "video_token_id": 4, "vision_start_token_id": 5, "vision_end_token_id": 6}
    size = {"size": {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 6}}
    size |= {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2}
    kind = "Qwen2VL" if family in ("qwen2_vl", "qwen2_5_vl") else "Qwen3VL"
    return {"text_config": text, "vision_config": vision, "tie_word_embeddings": False} | ids, {
        "image": size | {"image_processor_type": "Qwen2VLImageProcessor"},
        "video": size | {"video_processor_type": f"{kind}VideoProcessor"},
        "processor": {"processor_class": f"{name}Processor"},
    }
