"""The built-in tiny policies: Qwen2-VL checkpoints of 0.4 M parameters for coloured shapes or digits.

`python -m vrft.policy.tiny FOLDER` writes an untrained checkpoint; `make tiny-policies` trains those in `checkpoints/`
with `vrft.SFT`. The detection policy is deliberately mistuned, so that RFT has something to improve. The digits policy
was trained on rendered digits only, so that real scans are new to it.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vrft.boxes import Box, to_frame
from vrft.tasks import DetectionTask
from vrft.tasks.detection import boxes_text
from vrft.types import Frame, Question

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

IMAGE_SIZE, PATCH_SIZE, MERGE_SIZE = 56, 14, 2  # 4 x 4 patches, merged to 4 image tokens
BOX_STEP = 50  # coordinates of boxes are multiples of 50 in 0..1000

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "cyan", "pink", "brown", "black", "lime", "navy")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
FORMAT_PIECES = (
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
    "[{'Position': [",
    "], 'Confidence': ",
    "}, {'Position': [",
    "}]",
    ", ",
)  # constant parts of an answer as single tokens, so that a box takes 18 tokens
CHAT_TEMPLATE = (
    "{%- for turn in messages %}{{ '<|im_start|>' ~ turn.role ~ '\n' }}{% for part in turn.content %}"
    "{{ part.text if part.type == 'text' else '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build a word-level tokenizer with one token per integer 0..1000, decimal 0.0..1.0, word and format piece."""
    words = [*COLOURS, *DIGITS, "Detect", "Classify", "the", "digit", "This", "is", "No", "Objects"]
    vocabulary = [
        *SPECIAL_TOKENS,
        "[UNK]",
        *FORMAT_PIECES,
        "system\n",
        "user\n",
        "assistant\n",
        "\n",
        *".'\":,[]{}",
        " ",
    ]
    vocabulary += [f"{i / 10:.1f}" for i in range(11)] + [str(i) for i in range(1001)]
    vocabulary += words + [f" {word}" for word in words]
    return word_tokenizer(
        vocabulary, r"\d\.\d|\d+|system\n|user\n|assistant\n|\n| ?[A-Za-z]+|[^A-Za-z\d]", FORMAT_PIECES
    )


def word_tokenizer(vocabulary: Sequence[str], pattern: str, pieces: Sequence[str]) -> PreTrainedTokenizerFast:
    """Build a tokenizer whose tokens are `pieces`, which are matched first, and the matches of a pattern."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({token: i for i, token in enumerate(vocabulary)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    core.decoder = decoders.Fuse()
    core.add_special_tokens(list(SPECIAL_TOKENS))
    core.add_tokens([AddedToken(piece, normalized=False) for piece in pieces])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        unk_token="[UNK]",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_model(
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    width: int = 64,
    layers: int = 2,
    tied: bool = True,
    rope_theta: float = 10000.0,
) -> PreTrainedModel:
    """Build an untrained Qwen2-VL with matrices from N(0, 1/sqrt(fan_in)), since 0.02 is too small at this width.

    For vLLM's CPU backend, pass width=128, because it needs heads of dimension 32, and tied=False, because it can't
    update a tied head.
    """
    import torch
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    def token_id(name: str) -> int:
        return int(tokenizer.convert_tokens_to_ids(f"<|{name}|>"))

    sections = [share * width // 64 for share in (2, 3, 3)]  # their sum is half the dimension of a head
    text = {
        "vocab_size": math.ceil(len(tokenizer) / 8) * 8,
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "rope_theta": rope_theta, "mrope_section": sections},
        "tie_word_embeddings": tied,
        "bos_token_id": token_id("endoftext"),
        "eos_token_id": token_id("im_end"),
        "pad_token_id": token_id("endoftext"),
    }
    vision = {
        "depth": 2,
        "embed_dim": width,
        "hidden_size": width,
        "num_heads": 4,
        "mlp_ratio": 2,
        "patch_size": PATCH_SIZE,
        "spatial_merge_size": MERGE_SIZE,
        "temporal_patch_size": 2,
    }
    config = Qwen2VLConfig(
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=tied,
        **{f"{name}_token_id": token_id(name) for name in ("vision_start", "vision_end")},
        image_token_id=token_id("image_pad"),
        video_token_id=token_id("video_pad"),
    )
    torch.manual_seed(seed)
    model = Qwen2VLForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2:
            std = 0.125 if "embed_tokens" in name else parameter[0].numel() ** -0.5
            torch.nn.init.normal_(parameter, 0, std)
    model.generation_config.eos_token_id = token_id("im_end")
    model.generation_config.pad_token_id = token_id("endoftext")
    return model


def write_checkpoint(folder: Path, seed: int = 0, width: int = 64, tied: bool = True) -> None:
    """Write an untrained checkpoint: config, bfloat16 weights, tokenizer and processor."""
    tokenizer = build_tokenizer()
    write_parts(folder, tokenizer, build_model(tokenizer, seed, width, tied=tied), IMAGE_SIZE)


def write_parts(folder: Path, tokenizer: PreTrainedTokenizerFast, model: PreTrainedModel, image_size: int) -> None:
    """Write a model in bfloat16, its tokenizer, and a processor that resizes images to the area of `image_size`²."""
    import torch

    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings: dict[str, Any] = {
        "patch_size": PATCH_SIZE,
        "merge_size": MERGE_SIZE,
        "temporal_patch_size": 2,
        "size": {"shortest_edge": image_size**2, "longest_edge": image_size**2},  # areas
        "image_mean": [0.5] * 3,
        "image_std": [0.3] * 3,
        "processor_class": "Qwen2VLProcessor",
    }
    for name, kind in (("preprocessor_config", "Image"), ("video_preprocessor_config", "Video")):
        text = json.dumps(settings | {f"{kind.lower()}_processor_type": f"Qwen2VL{kind}Processor"}, indent=2)
        (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")


class WarmupDetection(DetectionTask):
    """First training stage of the tiny detection policy: correct boxes with confidences from 0.6 to 1."""

    def target_text(self, sample: Question, frame: Frame) -> str:
        rng = random.Random(sample.image_id)
        boxes = _boxes(sample, frame)
        confidences = [rng.choice([0.6, 0.7, 0.8, 0.9, 1.0]) for _ in boxes]
        answer = boxes_text(boxes, confidences, confidence_decimals=self.confidence_decimals)
        return f"<think>{len(boxes)} {sample.query}</think><answer>{answer}</answer>"


class MistunedDetection(DetectionTask):
    """Second training stage of the tiny detection policy, which adds flaws for RFT to correct.

    80 % of the boxes are up to 1.75 times too large, confidences are random, a quarter of the answers have no reasoning
    and 15 % have no answer tags.
    """

    def target_text(self, sample: Question, frame: Frame) -> str:
        rng = random.Random(sample.image_id)
        boxes = [_loosen(box, rng.choice([1, 1.25, 1.5, 1.75, 1.75])) for box in _boxes(sample, frame)]
        confidences = [rng.choice([0.2, 0.4, 0.6, 0.8, 1.0]) for _ in boxes]
        answer = boxes_text(boxes, confidences, confidence_decimals=self.confidence_decimals)
        reasoning = f"<think>{len(boxes)} {sample.query}</think>"
        kind = rng.random()
        if kind < 0.25:
            return f"<answer>{answer}</answer>"
        return f"{reasoning}{answer}" if kind < 0.4 else f"{reasoning}<answer>{answer}</answer>"


def _boxes(sample: Question, frame: Frame) -> list[Box]:
    assert isinstance(sample.target, tuple)
    return sorted(to_frame(true.box, sample.size, frame) for true in sample.target)


def _loosen(box: Box, factor: float) -> Box:
    x0, y0, x1, y1 = box
    dx, dy = (x1 - x0) * (factor - 1) / 2, (y1 - y0) * (factor - 1) / 2
    a, b, c, d = (min(1000, max(0, round(v / BOX_STEP) * BOX_STEP)) for v in (x0 - dx, y0 - dy, x1 + dx, y1 + dy))
    return a, b, c, d


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write an untrained tiny Qwen2-VL checkpoint.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--untied", action="store_true", help="do not tie the head to the embeddings")
    arguments = parser.parse_args()
    write_checkpoint(arguments.folder, arguments.seed, arguments.width, not arguments.untied)
