"""The published forms of Qwen's families, and what other families share with them."""

from __future__ import annotations

from typing import Any

from tests.helpers.published import Form, byte_level, chat, tokenizer_config

WIDTH = 32
TEXT: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
}
SIGLIP = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
CLIP_MEAN = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
HALF_MEAN = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
PLAIN = {"do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True}
PATCHES = {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2}
AREAS = {"size": {"longest_edge": 16777216, "shortest_edge": 65536}, "temporal_patch_size": 2, "merge_size": 2}

# ------------------------------------------------------------------------------------------------------------- Qwen

QWEN = {
    name: 151643 + i
    for i, name in enumerate(
        (
            *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
            *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>"),
            *("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
        )
    )
}
QWEN_IDS = {
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
}
QWEN_TURN = "'<|im_start|>' ~ m.role ~ '\n'"
QWEN_CHAT = {
    "image": "<|vision_start|><|image_pad|><|vision_end|>",
    "turn": QWEN_TURN,
    "end": "<|im_end|>\n",
    "answer": "<|im_start|>assistant\n",
}
SYSTEM = "'' if messages[0].role == 'system' else '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n'"
QWEN_TOKENS = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "bos_token": None, "unk_token": None}
QWEN_GENERATION = {
    "bos_token_id": 151643,
    "pad_token_id": 151643,
    "do_sample": True,
    "eos_token_id": [151645, 151643],
    "repetition_penalty": 1.05,
    "temperature": 0.1,
    "top_p": 0.001,
    "top_k": 1,
}
QWEN2_RENAMES = (("^model.visual.", "visual."), ("^model.language_model.", "model."))


def qwen2_vl() -> Form:
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": WIDTH, "mlp_ratio": 2, "num_heads": 1, "in_chans": 3}
    config = {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        "torch_dtype": "bfloat16",
        "vocab_size": 151936,
        "tie_word_embeddings": True,
        "rope_theta": 1000000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "vision_config": vision | {"patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2},
    }
    preprocessor = {"min_pixels": 3136, "max_pixels": 12845056, **PATCHES, **CLIP_MEAN}
    preprocessor |= {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2VLProcessor"}
    template = chat(**QWEN_CHAT, start=SYSTEM)
    return Form(
        config=config | TEXT | QWEN_IDS,
        files={
            "preprocessor_config.json": preprocessor,
            "generation_config.json": QWEN_GENERATION,
            "tokenizer_config.json": tokenizer_config(QWEN, "Qwen2Tokenizer", chat_template=template, **QWEN_TOKENS),
            "chat_template.json": {"chat_template": template},
        },
        special=QWEN,
        build_tokenizer=byte_level,
        stop=[151643, 151645],
        image_tokens=294,
        limits={"max_pixels": 28 * 28 * 4, "min_pixels": 28 * 28 * 2},
        renames=QWEN2_RENAMES,
    )


def qwen2_5_vl(early: bool) -> Form:
    vision = {"depth": 2, "hidden_size": 16, "out_hidden_size": WIDTH, "intermediate_size": 16, "num_heads": 1}
    vision |= {"fullatt_block_indexes": [1], "window_size": 112, "in_chans": 3, "tokens_per_second": 2}
    form = qwen2_vl()
    config = form.config | {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "tie_word_embeddings": False,
        "vocab_size": 152064,
        "vision_config": vision | {"patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2},
    }
    name = "Qwen2_5_VLImageProcessor" if early else "Qwen2VLImageProcessor"
    kind = {"image_processor_type": name, "processor_class": "Qwen2_5_VLProcessor"}
    files = form.files | {"preprocessor_config.json": form.files["preprocessor_config.json"] | kind}
    return Form(
        **vars(form) | {"config": config, "files": files, "coordinates": "pixels", "limits": {"max_pixels": 3136}}
    )


def qwen3_vl(experts: bool) -> Form:
    head = {"head_dim": 16, "rope_theta": 5000000, "vocab_size": 151936, "attention_bias": False}
    rope = {"rope_scaling": {"mrope_interleaved": True, "mrope_section": [4, 2, 2], "rope_type": "default"}}
    name = "qwen3_vl_moe" if experts else "qwen3_vl"
    vision = {"depth": 2, "hidden_size": 16, "intermediate_size": 16, "num_heads": 1, "out_hidden_size": WIDTH}
    vision |= {"deepstack_visual_indexes": [0], "num_position_embeddings": 2304, "patch_size": 16, "in_channels": 3}
    text = TEXT | head | rope | {"model_type": f"{name}_text", "bos_token_id": 151643, "eos_token_id": 151645}
    if experts:
        text |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "decoder_sparse_step": 1}
        text |= {"mlp_only_layers": [], "norm_topk_prob": True}
    config = {
        "architectures": ["Qwen3VLMoeForConditionalGeneration" if experts else "Qwen3VLForConditionalGeneration"],
        "model_type": name,
        "text_config": text | {"dtype": "bfloat16"},
        "vision_config": vision | {"model_type": name, "spatial_merge_size": 2, "temporal_patch_size": 2},
        "tie_word_embeddings": False,
    }
    preprocessor = {**AREAS, **HALF_MEAN, "patch_size": 16, "image_processor_type": "Qwen2VLImageProcessorFast"}
    video = AREAS | HALF_MEAN | {"patch_size": 16, "video_processor_type": "Qwen3VLVideoProcessor"}
    special = QWEN | {"<think>": 151667, "</think>": 151668}
    return Form(
        config=config | QWEN_IDS,
        files={
            "preprocessor_config.json": preprocessor | {"processor_class": "Qwen3VLProcessor"},
            "video_preprocessor_config.json": video | {"processor_class": "Qwen3VLProcessor"},
            "generation_config.json": QWEN_GENERATION | {"temperature": 0.7, "top_p": 0.8, "top_k": 20},
            "tokenizer_config.json": tokenizer_config(special, "Qwen2Tokenizer", **QWEN_TOKENS),
            "chat_template.json": {"chat_template": chat(**QWEN_CHAT)},
        },
        special=special,
        build_tokenizer=byte_level,
        stop=[151643, 151645],
        image_tokens=19 * 12,
        limits={"max_pixels": 32 * 32 * 4},  # below the checkpoint's smallest area
        transposed="experts" if experts else "no such weight",
    )


def qwen3_5() -> Form:
    special = {"<|endoftext|>": 248044, "<|im_start|>": 248045, "<|im_end|>": 248046, "<|vision_start|>": 248053}
    special |= {"<|vision_end|>": 248054, "<|vision_pad|>": 248055, "<|image_pad|>": 248056, "<|video_pad|>": 248057}
    rope = {"rope_type": "default", "rope_theta": 10000000, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    text = TEXT | {"model_type": "qwen3_5_text", "vocab_size": 248320, "head_dim": 16, "eos_token_id": 248044}
    text |= {"layer_types": ["linear_attention", "full_attention"], "linear_key_head_dim": 16}
    text |= {"linear_num_key_heads": 1, "linear_num_value_heads": 2, "linear_value_head_dim": 16}
    text |= {"rope_parameters": rope | {"partial_rotary_factor": 0.5}, "linear_conv_kernel_dim": 4}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 1, "out_hidden_size": WIDTH}
    vision |= {"num_position_embeddings": 2304, "patch_size": 16, "deepstack_visual_indexes": []}
    ids = {"image_token_id": 248056, "video_token_id": 248057, "vision_start_token_id": 248053}
    config = {
        "architectures": ["Qwen3_5ForConditionalGeneration"],
        "model_type": "qwen3_5",
        "text_config": text | {"dtype": "bfloat16", "tie_word_embeddings": True, "mtp_num_hidden_layers": 1},
        "vision_config": vision | {"model_type": "qwen3_5", "spatial_merge_size": 2, "temporal_patch_size": 2},
        "tie_word_embeddings": True,
        "vision_end_token_id": 248054,
    }
    form = qwen3_vl(experts=False)
    generation = {"bos_token_id": 248044, "do_sample": True, "eos_token_id": [248046, 248044], "pad_token_id": 248044}
    thinking = QWEN_CHAT | {"answer": "<|im_start|>assistant\n<think>\n\n</think>\n\n"}
    files = form.files | {
        "generation_config.json": generation,
        "tokenizer_config.json": tokenizer_config(special, "Qwen2Tokenizer", **QWEN_TOKENS),
        "chat_template.jinja": chat(**thinking),
    }
    del files["chat_template.json"]
    changed = {"config": config | ids, "files": files, "special": special, "stop": [248044, 248046]}
    return Form(**vars(form) | changed | {"extra": ("mtp.fc.weight",)})
