"""The published form of each family: facts, with small layers."""

from __future__ import annotations

import torch

from tests.helpers.published import Form, byte_level, chat, gemma, tokenizer_config
from tests.helpers.published_qwen import (
    CLIP_MEAN,
    HALF_MEAN,
    PATCHES,
    PLAIN,
    QWEN,
    QWEN_CHAT,
    QWEN_TOKENS,
    SIGLIP,
    TEXT,
    WIDTH,
    qwen2_5_vl,
    qwen2_vl,
    qwen3_5,
    qwen3_vl,
)

# ------------------------------------------------------------------------------------------- families of fixed tiles


def gemma3() -> Form:
    special = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "<mask>": 4, "<start_of_turn>": 105}
    special |= {"<end_of_turn>": 106, "<start_of_image>": 255999, "<end_of_image>": 256000}
    special |= {"<image_soft_token>": 262144}
    text = TEXT | {"model_type": "gemma3_text", "vocab_size": 262208, "head_dim": 16, "sliding_window": 1024}
    text |= {"query_pre_attn_scalar": 16, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}}
    config = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "torch_dtype": "bfloat16",
        "boi_token_index": 255999,
        "eoi_token_index": 256000,
        "image_token_index": 262144,
        "eos_token_id": [1, 106],
        "mm_tokens_per_image": 256,
        "text_config": text,
        "vision_config": SIGLIP
        | {"model_type": "siglip_vision_model", "image_size": 896, "patch_size": 14, "vision_use_head": False},
    }
    image = PLAIN | HALF_MEAN | {"do_convert_rgb": None, "do_pan_and_scan": None, "size": {"height": 896, "width": 896}}
    named = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    template = chat(
        image="<start_of_image>",
        turn="'<start_of_turn>' ~ m.role ~ '\n'",
        end="<end_of_turn>\n",
        answer="<start_of_turn>model\n",
        start="bos_token",
    )
    tokens = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    tokens |= {"add_bos_token": True, "extra_special_tokens": named, "chat_template": template} | named
    generation = {"bos_token_id": 2, "do_sample": True, "eos_token_id": [1, 106], "pad_token_id": 0, "top_k": 64}
    return Form(
        config=config,
        files={
            "preprocessor_config.json": image
            | {"image_processor_type": "Gemma3ImageProcessor", "image_seq_length": 256, "resample": 2},
            "processor_config.json": {"image_seq_length": 256, "processor_class": "Gemma3Processor"},
            "generation_config.json": generation,
            "tokenizer_config.json": tokenizer_config(special, "GemmaTokenizer", **tokens),
            "chat_template.json": {"chat_template": template},
        },
        special=special,
        build_tokenizer=gemma,
        stop=[1, 106],
        image_tokens=256,
        coordinates=None,
        renames=(
            ("^model.language_model", "language_model.model"),
            ("^model.vision_tower", "vision_tower.vision_model"),
            ("^model.multi_modal_projector", "multi_modal_projector"),
        ),
    )


def internvl() -> Form:
    special = QWEN | {"<img>": 151665, "</img>": 151666, "<IMG_CONTEXT>": 151667, "<quad>": 151668, "<video>": 151674}
    text = TEXT | {"model_type": "qwen2", "vocab_size": 151680, "rope_theta": 1000000.0, "tie_word_embeddings": False}
    vision = SIGLIP | {"model_type": "internvl_vision", "image_size": [448, 448], "patch_size": [14, 14]}
    config = {
        "architectures": ["InternVLForConditionalGeneration"],
        "model_type": "internvl",
        "torch_dtype": "bfloat16",
        "downsample_ratio": 0.5,
        "image_seq_length": 256,
        "image_token_id": 151667,
        "text_config": text | {"eos_token_id": 151645, "bos_token_id": 151643},
        "vision_config": vision,
        "tie_word_embeddings": False,
    }
    image = PLAIN | {"crop_to_patches": False, "max_patches": 12, "min_patches": 1, "resample": 3}
    named = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    named |= {"video_token": "<video>"}
    size = {"size": {"height": 448, "width": 448}, "image_mean": [0.485, 0.456, 0.406]}
    size |= {"image_std": [0.229, 0.224, 0.225], "processor_class": "InternVLProcessor"}
    template = chat(**QWEN_CHAT | {"image": "<IMG_CONTEXT>\n"})
    return Form(
        config=config,
        files={
            "preprocessor_config.json": image | size | {"image_processor_type": "GotOcr2ImageProcessorFast"},
            "video_preprocessor_config.json": PLAIN | size | {"video_processor_type": "InternVLVideoProcessor"},
            "processor_config.json": {"image_seq_length": 256, "processor_class": "InternVLProcessor"},
            "generation_config.json": {"eos_token_id": 151645, "pad_token_id": 151643, "bos_token_id": 151643},
            "tokenizer_config.json": tokenizer_config(
                special, "Qwen2Tokenizer", **QWEN_TOKENS, **named, extra_special_tokens=named
            ),
            "chat_template.jinja": template,
        },
        special=special,
        build_tokenizer=byte_level,
        stop=[151645],
        image_tokens=1792,
        limits={"max_tiles": 1},
        renames=(
            ("^model.language_model", "language_model.model"),
            ("^lm_head", "language_model.lm_head"),
            ("^model.vision_tower", "vision_tower"),
            ("^model.multi_modal_projector", "multi_modal_projector"),
        ),
    )


def llava_onevision() -> Form:
    special = {token: i for token, i in QWEN.items() if i <= 151645} | {"<image>": 151646, "<video>": 151647}
    text = TEXT | {"model_type": "qwen2", "vocab_size": 152000, "rope_theta": 1000000.0, "tie_word_embeddings": False}
    grids = [[384 * rows, 384 * columns] for rows in range(1, 7) for columns in range(1, 7)]
    config = {
        "architectures": ["LlavaOnevisionForConditionalGeneration"],
        "model_type": "llava_onevision",
        "torch_dtype": "float16",
        "image_grid_pinpoints": grids,
        "image_token_index": 151646,
        "video_token_index": 151647,
        "text_config": text | {"eos_token_id": 151645, "bos_token_id": 151643},
        "vision_config": SIGLIP
        | {"model_type": "siglip_vision_model", "image_size": 384, "patch_size": 14, "vision_use_head": False},
        "vision_aspect_ratio": "anyres_max_9",
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "tie_word_embeddings": False,
    }
    image = PLAIN | HALF_MEAN | {"do_pad": True, "image_grid_pinpoints": grids, "resample": 3}
    size = {"size": {"height": 384, "width": 384}, "processor_class": "LlavaOnevisionProcessor"}
    processor = {"image_token": "<image>", "num_image_tokens": 729, "processor_class": "LlavaOnevisionProcessor"}
    processor |= {"video_token": "<video>", "vision_feature_select_strategy": "full"}
    form = internvl()
    return Form(
        config=config,
        files={
            "preprocessor_config.json": image | size | {"image_processor_type": "LlavaOnevisionImageProcessor"},
            "video_preprocessor_config.json": PLAIN
            | HALF_MEAN
            | size
            | {"video_processor_type": "LlavaOnevisionVideoProcessor"},
            "processor_config.json": processor | {"vision_aspect_ratio": "anyres_max_9"},
            "generation_config.json": {"eos_token_id": 151645, "pad_token_id": 151643, "bos_token_id": 151643},
            "tokenizer_config.json": tokenizer_config(special, "Qwen2Tokenizer", **QWEN_TOKENS),
            "chat_template.json": {"chat_template": chat(**QWEN_CHAT | {"image": "<image>\n"})},
        },
        special=special,
        build_tokenizer=byte_level,
        stop=[151645],
        image_tokens=2709,
        limits={"max_tiles": 1},
        coordinates="unit",
        dtype=torch.float16,
        renames=(*form.renames[:2], ("^model.vision_tower", "vision_tower.vision_model"), ("^model.", "")),
    )


def glm4v() -> Form:
    names = ("<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>")
    names += ("<|assistant|>", "<|observation|>", "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>")
    names += ("<|end_of_video|>", "<|image|>", "<|video|>")
    special = {name: 151329 + i for i, name in enumerate(names)}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1], "partial_rotary_factor": 0.5}
    text = TEXT | {"model_type": "glm4v_text", "vocab_size": 151552, "rope_parameters": rope}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 1, "out_hidden_size": WIDTH}
    config = {
        "architectures": ["Glm4vForConditionalGeneration"],
        "model_type": "glm4v",
        "text_config": text | {"eos_token_id": [151329, 151336, 151338, 151348], "pad_token_id": 151329},
        "vision_config": vision | {"model_type": "glm4v_vision", "patch_size": 14, "spatial_merge_size": 2},
        "image_token_id": 151343,
        "video_token_id": 151344,
        "image_start_token_id": 151339,
        "image_end_token_id": 151340,
        "video_start_token_id": 151341,
        "video_end_token_id": 151342,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }
    size = {"size": {"shortest_edge": 12544, "longest_edge": 9633792}, **PATCHES, **CLIP_MEAN}
    size |= {"processor_class": "Glm4vProcessor"}
    template = chat(
        image="<|begin_of_image|><|image|><|end_of_image|>",
        turn="'<|' ~ m.role ~ '|>\n'",
        end="",
        answer="<|assistant|>\n",
        start="'[gMASK]<sop>'",
    )
    generation = {"eos_token_id": [151329, 151336, 151338], "pad_token_id": 151329, "do_sample": True}
    return Form(
        config=config,
        files={
            "preprocessor_config.json": size | {"image_processor_type": "Glm4vImageProcessor", "do_rescale": True},
            "video_preprocessor_config.json": size | {"video_processor_type": "Glm4vVideoProcessor"},
            "generation_config.json": generation,
            "tokenizer_config.json": tokenizer_config(
                special, "PreTrainedTokenizerFast", eos_token="<|endoftext|>", pad_token="<|endoftext|>"
            ),
            "chat_template.jinja": template,
        },
        special=special,
        build_tokenizer=byte_level,
        stop=[151329, 151336, 151338],
        image_tokens=294,
        limits={"max_pixels": 28 * 28 * 4},
    )


# -------------------------------------------------------------------------------------------------- edges and tiles

ROWS_AND_COLUMNS = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
IDEFICS_VISION = SIGLIP | {"image_size": 512, "patch_size": 16, "size": {"longest_edge": 2048}}


def idefics3() -> Form:
    special = {"<|end_of_text|>": 100257, "<|start_of_role|>": 100264, "<|end_of_role|>": 100265, "<|unk|>": 100266}
    special |= {"<fake_token_around_image>": 100269, "<image>": 100270, "<global-img>": 100271}
    special |= {"<end_of_utterance>": 100279} | {name: 100281 + i for i, name in enumerate(ROWS_AND_COLUMNS)}
    ids = {"bos_token_id": 100264, "eos_token_id": 100257, "pad_token_id": 100257}
    text = TEXT | {"model_type": "llama", "vocab_size": 100352, "rope_theta": 100000.0, "head_dim": 16}
    config = {
        "architectures": ["Idefics3ForConditionalGeneration"],
        "model_type": "idefics3",
        "dtype": "bfloat16",
        "image_token_id": 100270,
        "scale_factor": 4,
        "text_config": text | ids | {"tie_word_embeddings": True},
        "vision_config": IDEFICS_VISION | {"model_type": "idefics3_vision"},
        "tie_word_embeddings": True,
    }
    image = PLAIN | HALF_MEAN | {"do_image_splitting": True, "do_pad": True, "resample": 1}
    image |= {"max_image_size": {"longest_edge": 512}, "size": {"longest_edge": 2048}}
    template = chat(
        image="<image>",
        turn="'<|start_of_role|>' ~ m.role ~ '<|end_of_role|>'",
        end="<|end_of_text|>\n",
        answer="<|start_of_role|>assistant<|end_of_role|>",
    )
    tokens = {"bos_token": "<|start_of_role|>", "eos_token": "<|end_of_text|>", "pad_token": "<|end_of_text|>"}
    kind = {"processor_class": "Idefics3Processor", "image_processor_type": "Idefics3ImageProcessor"}
    return Form(
        config=config | ids,
        files={
            "preprocessor_config.json": image | kind,
            "processor_config.json": {"image_seq_len": 64, "processor_class": "Idefics3Processor"},
            "generation_config.json": ids,
            "tokenizer_config.json": tokenizer_config(special, "GPT2Tokenizer", unk_token="<|unk|>", **tokens),
            "chat_template.jinja": template,
        },
        special=special,
        build_tokenizer=byte_level,
        stop=[100257],
        image_tokens=13 * 64,
        coordinates=None,
        limits={"max_tiles": 3},  # 1 x 1
    )


def smolvlm() -> Form:
    special = {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2, "<global-img>": 49152}
    special |= {name: 49153 + i for i, name in enumerate(ROWS_AND_COLUMNS)}
    special |= {"<fake_token_around_image>": 49189, "<image>": 49190, "<end_of_utterance>": 49279}
    form = idefics3()
    ids = {"bos_token_id": 1, "eos_token_id": 49279, "pad_token_id": 2}
    text = form.config["text_config"] | ids | {"vocab_size": 49280}
    config = form.config | ids | {"architectures": ["SmolVLMForConditionalGeneration"], "model_type": "smolvlm"}
    config |= {"text_config": text, "image_token_id": 49190, "vocab_size": 49280}
    config["vision_config"] = IDEFICS_VISION | {"model_type": "smolvlm_vision"}
    kind = {"processor_class": "SmolVLMProcessor", "image_processor_type": "SmolVLMImageProcessor"}
    video = form.files["preprocessor_config.json"] | {"processor_class": "SmolVLMProcessor", "fps": 1, "max_frames": 64}
    template = chat(
        image="<image>",
        turn="'<|im_start|>' ~ m.role ~ ':'",
        end="<end_of_utterance>\n",
        answer="Assistant:",
    )
    tokens = {"bos_token": "<|im_start|>", "eos_token": "<end_of_utterance>", "pad_token": "<|im_end|>"}
    files = {
        "preprocessor_config.json": form.files["preprocessor_config.json"] | kind,
        "video_preprocessor_config.json": video | {"video_processor_type": "SmolVLMVideoProcessor"},
        "processor_config.json": {"image_seq_len": 64, "processor_class": "SmolVLMProcessor"},
        "generation_config.json": ids,
        "tokenizer_config.json": tokenizer_config(special, "GPT2Tokenizer", unk_token="<|endoftext|>", **tokens),
        "chat_template.json": {"chat_template": template},
    }
    changed = {"config": config, "files": files, "special": special, "stop": [49279], "limits": {"max_tiles": 4}}
    return Form(**vars(form) | changed)


FORMS = {
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": lambda: qwen2_5_vl(early=False),
    "qwen2_5_vl early": lambda: qwen2_5_vl(early=True),
    "qwen3_vl": lambda: qwen3_vl(experts=False),
    "qwen3_vl_moe": lambda: qwen3_vl(experts=True),
    "qwen3_5": qwen3_5,
    "gemma3": gemma3,
    "internvl": internvl,
    "llava_onevision": llava_onevision,
    "idefics3": idefics3,
    "smolvlm": smolvlm,
    "glm4v": glm4v,
}
"""Functions that return the form of each family."""
