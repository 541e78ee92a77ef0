"""Write a random checkpoint of Qwen2-VL, Qwen2.5-VL, Qwen3-VL-MoE or Qwen3.5, offline.

It has config, weights, tokenizer and image processor.

    python benchmarks/build_checkpoint.py CKPT --preset tiny

`tiny` has 4.9 M parameters; `small`, `1b` and `3b` have the widths and the vocabulary of real models; `narrow` has as
many layers as `3b`, but is narrow.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{{ '<|vision_start|><|image_pad|><|vision_end|>' if part.type == 'image' "
    "else part.text }}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NAMES = ("endoftext", "im_start", "im_end", "vision_start", "vision_end", "vision_pad", "image_pad", "video_pad")
WORDS = "the red green blue circle square box is at left right top of image count how many answer think yes no"
PROCESSORS = {"qwen2_5_vl": "Qwen2_5_VLProcessor", "qwen2_vl": "Qwen2VLProcessor"}
PROCESSORS |= dict.fromkeys(("qwen3_vl_moe", "qwen3_5"), "Qwen3VLProcessor")
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {
        "text": {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 688},
        "vision": {"width": 128, "depth": 2, "num_heads": 4, "intermediate_size": 344, "full": [1]},
        "vocabulary": None,
    },
    "narrow": {
        "text": {"hidden_size": 256, "num_hidden_layers": 36, "num_attention_heads": 16, "intermediate_size": 256},
        "vision": {"width": 64, "depth": 32, "num_heads": 4, "intermediate_size": 96, "full": [7, 15, 23, 31]},
        "vocabulary": None,
    },
    "small": {
        "text": {"hidden_size": 1024, "num_hidden_layers": 12, "num_attention_heads": 16, "intermediate_size": 4096},
        "vision": {"width": 640, "depth": 12, "num_heads": 10, "intermediate_size": 1712, "full": [7]},
        "vocabulary": 151936,
    },
    "1b": {
        "text": {"hidden_size": 1536, "num_hidden_layers": 14, "num_attention_heads": 12, "intermediate_size": 8960},
        "vision": {"width": 640, "depth": 12, "num_heads": 10, "intermediate_size": 1712, "full": [7]},
        "vocabulary": 151936,
    },
    "3b": {
        "text": {"hidden_size": 2048, "num_hidden_layers": 36, "num_attention_heads": 16, "intermediate_size": 11008},
        "vision": {"width": 1280, "depth": 32, "num_heads": 16, "intermediate_size": 3420, "full": [7, 15, 23, 31]},
        "vocabulary": 151936,
    },
}


def build_tokenizer(folder: Path) -> Any:
    """Train a byte-level BPE tokenizer of 2,000 tokens on random words, numbers and letters."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import Qwen2TokenizerFast

    rng = random.Random(0)
    corpus = [
        " ".join(rng.choices(WORDS.split(), k=30)) + f" {[rng.randint(0, 999) for _ in range(4)]}" for _ in range(2000)
    ]
    corpus += ["".join(chr(rng.randint(97, 122)) for _ in range(rng.randint(3, 9))) for _ in range(4000)]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=2000, show_progress=False, initial_alphabet=alphabet)
    )
    special = [f"<|{name}|>" for name in NAMES]
    tokenizer = Qwen2TokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>", unk_token=None
    )
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    return tokenizer


def build_config(arch: str, preset: dict[str, Any], tokenizer: Any) -> Any:
    """Return the model's config, with two key-value heads and rotary positions on three axes."""
    from transformers import AutoConfig

    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in NAMES}
    width = preset["text"]["hidden_size"]
    half = width // preset["text"]["num_attention_heads"] // 2
    sections = [half - 2 * (half * 3 // 8), half * 3 // 8, half * 3 // 8]
    text = preset["text"] | {
        "vocab_size": preset["vocabulary"] or -(-len(tokenizer) // 64) * 64,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections},
        "bos_token_id": ids["endoftext"],
        "eos_token_id": ids["im_end"],
        "pad_token_id": ids["endoftext"],
    }
    tower = preset["vision"]
    vision = {"depth": tower["depth"], "num_heads": tower["num_heads"]}
    if arch == "qwen2_vl":
        vision |= {"embed_dim": tower["width"], "hidden_size": width, "mlp_ratio": 4}
    else:
        vision |= {"hidden_size": tower["width"], "out_hidden_size": width, "window_size": 112}
        vision |= {"intermediate_size": tower["intermediate_size"], "fullatt_block_indexes": tower["full"]}
    named = {f"{name}_token_id": ids[name] for name in ("vision_start", "vision_end")}
    named |= {"image_token_id": ids["image_pad"], "video_token_id": ids["video_pad"]}
    if arch.startswith("qwen3"):
        vision |= {"num_position_embeddings": 2304, "patch_size": 14, "deepstack_visual_indexes": tower["full"]}
        del vision["window_size"], vision["fullatt_block_indexes"]
    if arch == "qwen3_vl_moe":
        text["rope_parameters"]["mrope_interleaved"] = True
    if arch == "qwen3_5":
        text |= gated_delta_nets(preset["text"])
    return AutoConfig.for_model(arch, text_config=text, vision_config=vision, tie_word_embeddings=False, **named)


def gated_delta_nets(text: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of layers, three in four of which are gated delta nets, with the proportions of Qwen3.5."""
    width, heads = text["hidden_size"], text["num_attention_heads"]
    rotary = width // heads // 8  # half of a quarter of a head
    sections = [rotary - 2 * (rotary * 3 // 8), rotary * 3 // 8, rotary * 3 // 8]
    rope = {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25, "mrope_section": sections}
    return {
        "layer_types": [
            "linear_attention" if (i + 1) % 4 else "full_attention" for i in range(text["num_hidden_layers"])
        ],
        "head_dim": width // heads,
        "linear_num_key_heads": heads,
        "linear_num_value_heads": 2 * heads,
        "linear_key_head_dim": width // heads // 2,
        "linear_value_head_dim": width // heads // 2,
        "rope_parameters": rope | {"mrope_interleaved": True},
    }


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--arch", default="qwen2_5_vl", choices=list(PROCESSORS))
    parser.add_argument("--preset", default="tiny", choices=list(PRESETS))
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu", help="device on which the weights are made")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--no-weights", action="store_true", help="write a file without weights: transformers makes random ones"
    )
    arguments = parser.parse_args(args)

    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForImageTextToText

    tokenizer = build_tokenizer(arguments.folder)
    config = build_config(arguments.arch, PRESETS[arguments.preset], tokenizer)
    torch.manual_seed(arguments.seed)
    with torch.device("meta" if arguments.no_weights else arguments.device):
        model = AutoModelForImageTextToText.from_config(config, dtype=getattr(torch, arguments.dtype))
    model.generation_config.eos_token_id = config.text_config.eos_token_id
    model.generation_config.pad_token_id = config.text_config.pad_token_id
    if arguments.no_weights:
        model.save_pretrained(arguments.folder, state_dict={})
        save_file({}, arguments.folder / "model.safetensors", metadata={"format": "pt"})
    else:
        model.save_pretrained(arguments.folder)
    processor = {
        "processor_class": PROCESSORS[arguments.arch],
        "image_processor_type": "Qwen2VLImageProcessor",
        "size": {"shortest_edge": 28 * 28 * 4, "longest_edge": 28 * 28 * 16384},
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.48, 0.46, 0.41],
        "image_std": [0.27, 0.26, 0.28],
    }
    (arguments.folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=2))
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    print(f"{arguments.folder}: {type(model).__name__}, {millions:.1f} M parameters")


if __name__ == "__main__":
    main()
