"""Sizes of published models, as their config.json states them."""

from __future__ import annotations

from typing import Any


def qwen2(
    kind: str, hidden: int, layers: int, heads: int, key_heads: int, intermediate: int, vocabulary: int = 151936
) -> dict[str, Any]:
    """Return the config of a Qwen2-VL or Qwen2.5-VL."""
    text = {"hidden_size": hidden, "num_hidden_layers": layers, "intermediate_size": intermediate}
    text |= {"num_attention_heads": heads, "num_key_value_heads": key_heads, "vocab_size": vocabulary}
    vision: dict[str, Any] = {"depth": 32, "patch_size": 14, "spatial_merge_size": 2}
    if kind == "qwen2_vl":
        vision |= {"embed_dim": 1280, "hidden_size": hidden, "num_heads": 16, "mlp_ratio": 4}
    else:
        vision |= {"hidden_size": 1280, "out_hidden_size": hidden, "num_heads": 16, "intermediate_size": 3420}
    tied = hidden < 3000
    text |= {"tie_word_embeddings": tied, "model_type": f"{kind}_text"}
    return {"model_type": kind, "text_config": text, "vision_config": vision, "tie_word_embeddings": tied}


def qwen3(hidden: int, layers: int, heads: int, intermediate: int, tower: tuple[int, int, int]) -> dict[str, Any]:
    """Return the config of a dense Qwen3-VL. `tower`: width, blocks and width of the MLP of the vision tower."""
    width, depth, mlp = tower
    text = {"hidden_size": hidden, "num_hidden_layers": layers, "intermediate_size": intermediate, "head_dim": 128}
    text |= {"num_attention_heads": heads, "num_key_value_heads": 8, "vocab_size": 151936}
    vision = {"hidden_size": width, "depth": depth, "intermediate_size": mlp, "num_heads": 16, "patch_size": 16}
    vision |= {"spatial_merge_size": 2, "out_hidden_size": hidden, "num_position_embeddings": 2304}
    vision |= {"deepstack_visual_indexes": [5, 11, 17] if depth == 24 else [8, 16, 24]}
    tied = hidden < 4096
    text |= {"tie_word_embeddings": tied, "model_type": "qwen3_vl_text"}
    return {"model_type": "qwen3_vl", "text_config": text, "vision_config": vision, "tie_word_embeddings": tied}


def qwen3_5(hidden: int, intermediate: int, tower: tuple[int, int, int]) -> dict[str, Any]:
    """Return the config of a dense Qwen3.5 of 32 layers, as model cards state it; `tower` as for `qwen3`.

    transformers' default is the 9B; the tower and the tied head of the 4B are taken from Qwen3-VL-4B.
    """
    width, depth, mlp = tower
    tied = hidden < 4096
    text = {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": 32,
        "model_type": "qwen3_5_text",
    }
    vision = {"hidden_size": width, "depth": depth, "intermediate_size": mlp, "out_hidden_size": hidden}
    text |= {"tie_word_embeddings": tied}
    return {"model_type": "qwen3_5", "text_config": text, "vision_config": vision, "tie_word_embeddings": tied}


def gemma3(hidden: int, layers: int, heads: int, key_heads: int, intermediate: int) -> dict[str, Any]:
    """Return the config of a Gemma 3 with images."""
    text = {"hidden_size": hidden, "num_hidden_layers": layers, "intermediate_size": intermediate, "head_dim": 256}
    text |= {"num_attention_heads": heads, "num_key_value_heads": key_heads, "vocab_size": 262208}
    text |= {"sliding_window": 1024, "model_type": "gemma3_text"}
    vision = {"hidden_size": 1152, "num_hidden_layers": 27, "intermediate_size": 4304, "num_attention_heads": 16}
    vision |= {"image_size": 896, "patch_size": 14, "vision_use_head": False}
    vision |= {"model_type": "siglip_vision_model"}
    return {"model_type": "gemma3", "text_config": text, "vision_config": vision, "mm_tokens_per_image": 256}


def internvl3(hidden: int, layers: int, heads: int, key_heads: int, intermediate: int) -> dict[str, Any]:
    """Return the config of an InternVL3 with the smaller tower."""
    text = {"hidden_size": hidden, "num_hidden_layers": layers, "intermediate_size": intermediate}
    text |= {"num_attention_heads": heads, "num_key_value_heads": key_heads, "vocab_size": 151674}
    text |= {"model_type": "qwen2", "tie_word_embeddings": False}
    vision = {"hidden_size": 1024, "num_hidden_layers": 24, "intermediate_size": 4096, "num_attention_heads": 16}
    vision |= {"image_size": [448, 448], "patch_size": [14, 14], "model_type": "internvl_vision"}
    return {"model_type": "internvl", "text_config": text, "vision_config": vision, "tie_word_embeddings": False}


PUBLISHED = {
    "Qwen2-VL-2B": qwen2("qwen2_vl", 1536, 28, 12, 2, 8960),
    "Qwen2-VL-7B": qwen2("qwen2_vl", 3584, 28, 28, 4, 18944, 152064),
    "Qwen2.5-VL-3B": qwen2("qwen2_5_vl", 2048, 36, 16, 2, 11008),
    "Qwen2.5-VL-7B": qwen2("qwen2_5_vl", 3584, 28, 28, 4, 18944, 152064),
    "Qwen3-VL-2B": qwen3(2048, 28, 16, 6144, (1024, 24, 4096)),
    "Qwen3-VL-4B": qwen3(2560, 36, 32, 9728, (1024, 24, 4096)),
    "Qwen3-VL-8B": qwen3(4096, 36, 32, 12288, (1152, 27, 4304)),
    "Qwen3.5-4B": qwen3_5(2560, 9216, (1024, 24, 4096)),
    "Qwen3.5-9B": qwen3_5(4096, 12288, (1152, 27, 4304)),
    "Gemma-3-4B": gemma3(2560, 34, 8, 4, 10240),
    "InternVL3-2B": internvl3(1536, 28, 12, 2, 8960),
    "InternVL3-8B": internvl3(3584, 28, 28, 4, 18944),
}
