"""Sizes of the tiny models that `families.py` builds, and settings of single types."""

from __future__ import annotations

from typing import Any

SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "embed_dim", "out_hidden_size", "d_model", "hidden_dim", "projection_dim"), 32),
    **dict.fromkeys(("text_hidden_size", "projector_hidden_size", "projection_hidden_size", "mlp_dim"), 32),
    **dict.fromkeys(("adapter_in_dim", "adapter_out_dim", "moe_hidden_size"), 32),
    **dict.fromkeys(("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size", "ffn_dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "depth", "encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "num_heads", "attention_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_experts_per_tok", "moe_k"), 2),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("sliding_window", "attention_chunk_size", "index_topk"), 16),
    **dict.fromkeys(("head_dim", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "index_head_dim"), 8),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank"), 16),
    "qk_head_dim": 16,
    **dict.fromkeys(("n_group", "topk_group"), 1),
    "hidden_size_per_layer_input": 8,
    "mrope_section": [2, 1, 1],
    "mlp_ratio": 2,
    "max_position_embeddings": 8192,
    "deepstack_visual_indexes": [0, 1],
    "fullatt_block_indexes": [1],
}
"""Sizes of the tiny models, by their names in configs."""

ROPE = {"rope_type": "default", "rope_theta": 10000.0}
ROPE_BY_LAYER = {"full_attention": ROPE, "sliding_attention": ROPE}

OVERRIDES: dict[str, dict[str, Any]] = {
    "apertus1p5": {"audio_config": {"codebook_dim": 32}},
    "aria": {"vision_config": {"image_size": 490, "patch_size": 14}},
    "aya_vision": {"vision_config": {"image_size": 392}},
    "chameleon": {
        "vocabulary_map": {"<image>": 8, **{f"IMGIMG{chr(65 + i)}Z": 100 + i for i in range(26)}},
        "image_token_id": 8,
    },
    "deepseek_vl_hybrid": {"high_res_vision_config": {"global_attn_indexes": [1]}},
    "diffusion_gemma": {"text_config": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32}},
    "ernie4_5_vl_moe": {
        "text_config": {"mlp_layer_types": ["sparse", "sparse"], "rope_parameters": {"mrope_section": [1, 1, 2]}}
    },
    "gemma3": {"mm_tokens_per_image": 49},
    "glm4v_moe": {"text_config": {"head_dim": 16}},
    "glm5_next": {"text_config": {"num_key_value_heads": 4, "qk_rope_head_dim": 0, "qk_head_dim": 8}},
    "hunyuan_vl": {"text_config": {"head_dim": 8}},
    "idefics3": {"vision_config": {"image_size": 256}},
    "lfm2_vl": {"text_config": {"layer_types": ["conv", "full_attention"]}},
    "mistral_large4": {"text_config": {"num_key_value_heads": 4}},
    "minicpmv4_6": {"image_token_id": 300},
    "minicpmv4_7": {"image_token_id": 300},
    "minicpm_ocr": {"image_token_id": 300},
    "molmo2": {"adapter_config": {"vision_feature_layer": [1, 0]}},
    "qwen2_5_omni_thinker": {"vision_start_token_id": 151652},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 151652},
    "qwen4_exp": {
        "text_config": {
            "indexer_n_heads": 2,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 8,
            "indexer_budget": 16,
            "indexer_compress_ratio": 4,
            "ngram_vocab_size_base": 1000,
        }
    },
    "shieldgemma2": {"mm_tokens_per_image": 49},
    "smolvlm": {"vision_config": {"image_size": 256}},
    "step3p7": {"text_config": {"sliding_window": 16, "rope_parameters": ROPE_BY_LAYER}},
    "vipllava": {"vision_feature_layers": [-2, -1]},
    "deepseek_ocr2": {
        "text_config": {"num_experts_per_tok": 2, "mlp_layer_types": ["dense", "sparse"]},
        "vision_config": {
            "sam_config": {"downsample_channels": [16, 32], "output_channels": 16, "global_attn_indexes": [1]}
        },
    },
    "hy_v4_vl": {"text_config": {"num_key_value_heads": 4, "rope_parameters": {"mrope_section": [2, 1, 1]}}},
    "inkling_mm_model": {"vision_config": {"n_layers": 2}},
    "kimi_k25": {"text_config": {"num_key_value_heads": 4}},
    "llama4": {
        "vision_config": {
            "vision_output_dim": 32,
            "projector_input_dim": 32,
            "projector_output_dim": 32,
            "intermediate_size": 128,
        }
    },
    "muse_glimmer": {"out_hidden_size": 128},
    "muse_spark": {"out_hidden_size": 128},
    "dots3_note": {
        "text_config": {
            "num_key_value_heads": 4,
            "layer_types": ["indexed_attention", "sliding_attention"],
            "head_dim": 16,
            "per_layer_config": {
                1: {"num_attention_heads": 4, "num_key_value_heads": 4, "kv_lora_rank": 16, "qk_nope_head_dim": 8}
            },
        },
        "audio_config": {"num_key_value_heads": 4, "adapter_input_size": 32},
    },
    "gemma3n": {
        "text_config": {"num_kv_shared_layers": 0, "final_logit_softcapping": 5.0},
        "vision_config": {"hidden_size": 2048},
    },
    "gemma4": {
        "text_config": {
            "final_logit_softcapping": 5.0,
            "vocab_size": 512,
            "vocab_size_per_layer_input": 512,
            "num_hidden_layers": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "num_kv_shared_layers": 2,
            "sliding_window": 16,
        },
        "image_token_id": 300,
        "boi_token_id": 301,
        "eoi_token_id": 302,
        "audio_token_id": 303,
        "video_token_id": 304,
        "boa_token_id": 305,
        "eoa_token_id": 306,
        "audio_config": None,
        "vision_config": {
            "model_type": "gemma4_vision",
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 8,
        },
    },
    "gemma4_unified": {
        "text_config": {"final_logit_softcapping": 5.0},
        "vision_config": {"model_type": "gemma4_unified_vision"},
    },
    "cohere_compass": {"text_config": {"logit_scale": 0.25, "rope_parameters": ROPE_BY_LAYER}},
    "unlimited_ocr": {
        "vision_config": {
            "sam_config": {"downsample_channels": [16, 32], "output_channels": 16, "global_attn_indexes": [1]}
        }
    },
    "fast_vlm": {"vision_config": {"hidden_size": 3072}},
    "granite_docling": {"text_config": {"logits_scaling": 3.0}},
    "hyperclovax_vision_v2": {"text_config": {"logits_scaling": 3.0}},
    "perception_lm": {
        "projector_pooling_ratio": 2,
        "vision_config": {
            "architecture": "vit_pe_core_tiny_patch16_384",
            "model_args": {
                "embed_dim": 192,
                "depth": 2,
                "global_pool": "",
                "use_post_transformer_norm": False,
                "init_values": 0.1,
                "ref_feat_shape": [28, 28],
                "img_size": 448,
            },
        },
    },
    "emu3": {
        "vocabulary_map": {
            "<image>": 8,
            "<|extra_200|>": 9,
            **{f"<|visual token {i:06}|>": 100 + i for i in range(64)},
        },
        "image_token_id": 8,
        "vq_config": {"base_channels": 32, "hidden_size": 128, "codebook_size": 64},
    },
    "granite4_vision": {
        "downsample_rate": "1/2",
        "deepstack_layer_map": [[-1, 0], [-2, 1]],
        "spatial_target_layers": [0, 1, 0, 1],
        "vision_config": {"image_size": 384, "patch_size": 16, "hidden_size": 64},
        "text_config": {"logits_scaling": 3.0},
        "image_grid_pinpoints": [[384, 768], [768, 384]],
    },
    "blip-2": {"image_token_index": 300},
    "instructblip": {"image_token_index": 300},
    "nemotron_h_omni": {"image_token_id": 300},
}
"""Settings of single types whose defaults are inconsistent or do not fit the sizes above."""

IMAGE_PROCESSORS = {
    "fast_vlm": "llava",
    "glm4v_moe": "glm4v",
    "glm_ocr": "glm46v",
    "qwen2_5_omni_thinker": "qwen2_vl",
    "qwen3_omni_moe_thinker": "qwen2_vl",
    "qwen3_vl_moe": "qwen3_vl",
}
"""Types whose image processor is defined only by a checkpoint's files, each with a type that has the same one."""

IMAGE_SETTINGS: dict[str, dict[str, Any]] = {
    "dots3_note": {"temporal_patch_size": 1},
    "emu3": {"min_pixels": 64 * 64, "max_pixels": 128 * 128},
    "granite4_vision": {"image_grid_pinpoints": [[384, 768], [768, 384]]},
    "perception_lm": {"max_num_tiles": 1},
}
"""Settings of image processors from preprocessor_config.json of published checkpoints."""
