"""Checkpoints in the form in which model families are published: their files, key names, token ids and shards.

Only the sizes of layers are small. Vocabularies, special tokens, image sizes and the fields of all files are those of
the published checkpoints; the tokenizers have one token for each byte besides.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText

Files = dict[str, Any]
"""Content of a checkpoint's files by name: text, or what is written as JSON."""


@dataclass(frozen=True)
class Form:
    """A published checkpoint.

    Attributes:
        config: content of config.json.
        files: content of the other JSON files and templates.
        special: ids of the special tokens.
        build_tokenizer: builds the tokenizer from the special tokens.
        renames: patterns in the names of transformers' weights, and what the published names have instead.
        limits: limits of `vrft.Policy` for images in the tests' training step.
        image_tokens: image tokens of a 600 x 400 photo without limits.
        stop: ids that end an answer.
        coordinates: coordinates of boxes that the family was taught, if they are known.
        transposed: published shapes have the last two dimensions of these weights exchanged.
        extra: published weights that the model doesn't have.
    """

    config: dict[str, Any]
    files: Files
    special: dict[str, int]
    build_tokenizer: Callable[[dict[str, int]], Tokenizer]
    stop: list[int]
    image_tokens: int
    limits: dict[str, int] = field(default_factory=dict)
    renames: tuple[tuple[str, str], ...] = ()
    coordinates: str | None = "thousandths"
    transposed: str = "no such weight"
    extra: tuple[str, ...] = ()
    dtype: torch.dtype = torch.bfloat16


def write(folder: Path, form: Form) -> dict[str, Tensor]:
    """Write a form's checkpoint to a folder and return its weights by their published names."""
    tokenizer = form.build_tokenizer(form.special)
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, content in {"config.json": form.config, **form.files}.items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content, indent=2))
    weights = published_weights(form)
    names = sorted(weights)
    index: dict[str, Any] = {"metadata": {"total_size": sum(w.nbytes for w in weights.values())}, "weight_map": {}}
    for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), 1):
        shard = f"model-{number:05}-of-00002.safetensors"
        save_file({name: weights[name] for name in part}, folder / shard, {"format": "pt"})
        index["weight_map"] |= dict.fromkeys(part, shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return weights


def published_weights(form: Form) -> dict[str, Tensor]:
    """Return random weights by their published names, in published shapes."""
    config = AutoConfig.for_model(**form.config)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    tied = {*model.all_tied_weights_keys}
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, parameter in model.state_dict().items():
        if name in tied:
            continue
        value = torch.empty(parameter.shape)
        if parameter.ndim >= 2:  # models with the usual small weights hardly depend on their input
            std = 1.0 if "embed_tokens" in name else 0.7 * parameter[0].numel() ** -0.5
            value.normal_(0, std, generator=generator)
        else:
            value.uniform_(0.5, 1.0, generator=generator)
        for pattern, replacement in form.renames:
            name = re.sub(pattern, replacement, name)
        if re.search(form.transposed, name):
            value = value.transpose(1, 2).contiguous()
        weights[name] = value.to(form.dtype)
    return weights | {name: torch.ones(8, 8, dtype=form.dtype) for name in form.extra}


# ------------------------------------------------------------------------------------------------------- tokenizers


def byte_level(special: dict[str, int]) -> Tokenizer:
    """Return a byte-level BPE tokenizer, as those of GPT-2, Qwen, GLM and SmolLM, without merges."""
    taken = {*special.values()}
    free = (i for i in range(1000) if i not in taken)
    letters = dict(zip(sorted(pre_tokenizers.ByteLevel.alphabet()), free, strict=False))
    core = Tokenizer(models.BPE(letters | special, []))
    core.normalizer = normalizers.NFC()
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(list(special))
    return core


def gemma(special: dict[str, int]) -> Tokenizer:
    """Return Gemma's kind of BPE tokenizer, which adds <bos> and falls back to bytes, without merges."""
    letters = {f"<0x{byte:02X}>": 238 + byte for byte in range(256)}
    letters |= {chr(code): 494 + code for code in range(33, 127)} | {"▁": 236743}
    core = Tokenizer(models.BPE(letters | special, [], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    core.normalizer = normalizers.Replace(" ", "▁")
    core.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    core.add_special_tokens(list(special))
    core.post_processor = processors.TemplateProcessing("<bos> $A", "<bos> $A <bos> $B", [("<bos>", special["<bos>"])])
    return core


def tokenizer_config(special: dict[str, int], kind: str, **fields: Any) -> dict[str, Any]:
    """Return the content of tokenizer_config.json."""
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    added = {str(i): {"content": token, **flags} for token, i in special.items()}
    return {"added_tokens_decoder": added, "tokenizer_class": kind, "model_max_length": 32768, **fields}


def chat(image: str, turn: str, end: str, answer: str, start: str = "") -> str:
    """Return a chat template.

    Args:
        image: text of an image.
        turn: text before a message, an expression of Jinja.
        end: text after a message.
        answer: text before an answer.
        start: text before the first message, an expression of Jinja.
    """
    return (
        f"{{{{ {start or repr('')} }}}}{{% for m in messages %}}{{{{ {turn} }}}}"
        "{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
        f"{{{{ {image!r} if part.type == 'image' else part.text }}}}{{% endfor %}}{{% endif %}}{{{{ {end!r} }}}}"
        f"{{% endfor %}}{{% if add_generation_prompt %}}{{{{ {answer!r} }}}}{{% endif %}}"
    )
