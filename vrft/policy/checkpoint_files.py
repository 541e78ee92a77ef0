"""Check the files of a checkpoint folder before reading large files."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from os.path import isfile
from pathlib import Path, PurePath
from typing import Any

from safetensors import SafetensorError, safe_open

from vrft.errors import ConfigurationError
from vrft.policy.four_bits import is_bitsandbytes
from vrft.policy.processor import PROCESSOR_FILES
from vrft.policy.stored_settings import stored_problem
from vrft.utils.processors import IMAGE_PROCESSOR_FILES
from vrft.utils.regular_files import open_regular

FIELD = "model.policy.checkpoint"
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
READ_SUFFIXES = (".json", ".jinja", ".txt", ".model", ".safetensors")
"""Suffixes of the files that are read and checked."""

REQUIRED_KEYS = {"config.json": "model_type", "tokenizer.json": "model", "chat_template.json": "chat_template"}
"""The key that each file must have. `.index.json` files must have a weight_map."""

MAY_BE_EMPTY = ("special_tokens_map.json", "added_tokens.json")

TOKENIZER_FILES = (
    ("tokenizer.json",),
    ("vocab.json", "merges.txt"),
    ("vocab.txt",),
    ("tokenizer.model",),
    ("spiece.model",),
    ("tekken.json",),
)
"""Alternative sets of files from which transformers builds a tokenizer."""

TEXT_FILES = (*PROCESSOR_FILES, "generation_config.json")
SINGLE_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"

OTHER_FORMATS = {
    "consolidated*": "Mistral's or Meta's own format; expected the one that transformers reads",
    "*.gguf": "a format for inference; expected the safetensors that it was made from",
    "pytorch_model*.bin": "pickled, which can run code; `model.save_pretrained(folder)` writes safetensors",
    "*.bin": "pickled, which can run code; `model.save_pretrained(folder)` writes safetensors",
    "*.pt*": "pickled, which can run code; `model.save_pretrained(folder)` writes safetensors",
    "*.safetensors": f"without {INDEX_FILE}; is the download complete?",
    "*/config.json": "in a folder below; name that one",
}
"""Patterns of files that a folder may have instead of the expected weights, with descriptions."""

QUANTISATION_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
QUANTISED_TYPES = ("F8", "F4", "F6_", "I4", "U8", "I8")
"""Prefixes of the safetensors types of quantised weights."""

STORED_TYPES = ("F16", "BF16", "F32")
"""Safetensors types of weights. Buffers, such as position ids, may be integers."""


def is_small(file: str) -> bool:
    """Return whether a file of a model on the Hub is read before the weights are downloaded."""
    at_the_top = PurePath(file).parent.name in ("", "additional_chat_templates")
    return at_the_top and file.endswith(tuple({*READ_SUFFIXES} - {".safetensors"}))


def weight_names(folder: Path, listed: Collection[str]) -> list[str]:
    """Return the names of the safetensors files that transformers reads from a checked folder, downloaded or not.

    `listed` are the files of a model on the Hub. A single file takes precedence over shards.
    """
    if SINGLE_FILE in listed or not (folder / INDEX_FILE).is_file():
        return [SINGLE_FILE]
    return sorted({*_read_json(folder / INDEX_FILE)["weight_map"].values()})


def check_folder(folder: Path, listed: Collection[str] = ()) -> None:
    """Check that a folder has a complete checkpoint of a model that answers questions about images.

    Weights may be quantised to four bits by bitsandbytes, but in no other way.

    Args:
        folder: the folder.
        listed: files of a model on the Hub, whose weights may not be downloaded yet.

    Raises:
        ConfigurationError: the checkpoint is incomplete or unsupported. The message names the file.
    """
    if not folder.is_dir():
        raise _refused(folder, "is a file; expected the folder of a checkpoint")
    if not listed and not any(folder.iterdir()):
        raise _refused(folder, "is empty; expected a folder with config.json and safetensors")
    _check_files(folder)
    if (folder / "adapter_config.json").exists():
        raise _refused(folder, _adapter(_read_json(folder / "adapter_config.json")))
    if not (folder / "config.json").is_file():
        raise _refused(folder, f"is not a checkpoint folder: it has no config.json{_describe_content(folder, listed)}")
    _check_config(folder / "config.json")
    _check_texts(folder)
    _check_tokenizer(folder)
    _check_weights(folder, listed)


def _check_config(path: Path) -> None:
    """Check the model type and the quantisation in the config.json of a checkpoint.

    Raises:
        ConfigurationError: transformers has no model of this type that answers questions about images, or the weights
            are quantised other than to four bits by bitsandbytes.
    """
    config = _read_json(path)
    _check_type(path, config)
    for section in _sections(config):
        for key in ("quantization_config", "compression_config", "quantization"):
            if section.get(key) and not (section is config and is_bitsandbytes(section[key])):
                raise _quantised(path, key, section[key])
    for name in QUANTISATION_FILES:
        if (path.parent / name).exists():
            raise _quantised(path.parent / name, "quant_method", _read_json(path.parent / name))


def _sections(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a config and all nested configs."""
    yield config
    for part in config.values():
        if isinstance(part, dict):
            yield from _sections(part)


def _refused(path: Path, reason: str) -> ConfigurationError:
    return ConfigurationError(f"{FIELD}: {path} {reason}")


def _check_files(folder: Path) -> None:
    """Raise ConfigurationError if a file to read is a Git-LFS pointer or not a regular file."""
    for path in (path for path in sorted(folder.iterdir()) if path.suffix in READ_SUFFIXES):
        try:
            with open_regular(path) as file:
                start = file.read(len(LFS_POINTER))
        except OSError as error:
            raise _refused(path, f"can't be read: {error.strerror}") from error
        if start == LFS_POINTER:
            raise _refused(path, "is a Git-LFS pointer, not the file itself; run `git lfs pull` in its folder")


def _read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        ConfigurationError: the file can't be read, is not an object, or lacks the key of `REQUIRED_KEYS`.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _refused(path, f"is not valid JSON in UTF-8: {error}") from error
    if not isinstance(content, dict):
        raise _refused(path, f"is not valid: expected a JSON object, got {type(content).__name__}")
    required = "weight_map" if path.name.endswith(".index.json") else REQUIRED_KEYS.get(path.name)
    if required is not None and not content.get(required):
        raise _refused(path, f"has no {required!r}")
    if not content and path.name not in MAY_BE_EMPTY:
        raise _refused(path, "is empty: {}")
    return content


def _check_texts(folder: Path) -> None:
    """Check that JSON files contain an object with values of the expected kinds, and that other texts are UTF-8."""
    for path in (folder / name for name in TEXT_FILES if (folder / name).is_file()):
        if path.suffix == ".json":
            if problem := stored_problem(path.name, _read_json(path)):
                raise _refused(path, problem)
        elif path.suffix in (".jinja", ".txt"):
            try:
                path.read_text(encoding="utf-8")
            except (OSError, ValueError) as error:
                raise _refused(path, f"is not text in UTF-8: {error}") from error
    if not any((folder / name).is_file() for name in IMAGE_PROCESSOR_FILES):
        raise _refused(folder, f"has no {IMAGE_PROCESSOR_FILES[0]}, the settings of its image processor")


def _check_tokenizer(folder: Path) -> None:
    if any(all((folder / name).is_file() for name in names) for names in TOKENIZER_FILES):
        return
    part = next((names for names in TOKENIZER_FILES if any((folder / name).is_file() for name in names)), None)
    lacks = "tokenizer.json" if part is None else next(name for name in part if not (folder / name).is_file())
    raise _refused(folder, f"is not a checkpoint folder: it has no {lacks}")


def _check_type(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse types without an image-text-to-text model in transformers, unless the checkpoint has its own code."""
    from transformers import __version__
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    kind = config["model_type"]
    if not isinstance(kind, str):
        raise _refused(path, f"is not valid: expected the name of a model_type, got {kind!r}")
    if kind in modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES or "auto_map" in config:
        return
    if kind not in CONFIG_MAPPING_NAMES:
        raise _refused(path, f"has model_type {kind!r}, which transformers {__version__} does not know")
    if f"{kind}_thinker" in CONFIG_MAPPING_NAMES:
        reason = f"a model that also speaks; expected a checkpoint of the part that answers in text, {kind}_thinker"
    elif kind in modeling_auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES or config.get("audio_config") is not None:
        reason = "a model of sound"
    elif kind in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not config.get("vision_config"):
        reason = "a text-only model"
    else:
        reason = "no model that answers questions about images in text"
    raise _refused(path, f"has model_type {kind!r}: {reason}; vrft trains vision-language models, as Qwen2.5-VL")


def _quantised(path: Path, key: str, settings: object) -> ConfigurationError:
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    return _refused(
        path,
        f"says that the weights are quantised ({key}: {method or settings}), and these can't be trained; use the "
        "checkpoint that it was made from, in bfloat16 (its name has no AWQ, GPTQ, FP8 or 4bit), with "
        "model.policy.lora to save memory",
    )


def _adapter(settings: Mapping[str, Any]) -> str:
    base = settings.get("base_model_name_or_path") or "a model that adapter_config.json does not name"
    return (
        f"holds an adapter of {base} ({settings.get('peft_type', 'adapter_config.json')}), not a model; expected a "
        "folder with merged weights: the folder above, if vrft exported both, or what `model.merge_and_unload()` of "
        "peft and `save_pretrained` write"
    )


def _describe_content(folder: Path, listed: Collection[str]) -> str:
    """Describe the content of a folder without the expected files."""
    names = sorted(listed or (path.relative_to(folder).as_posix() for path in [*folder.glob("*"), *folder.glob("*/*")]))
    for pattern, what in OTHER_FORMATS.items():
        if found := [name for name in names if PurePath(name).match(pattern) and name.count("/") == pattern.count("/")]:
            return f", only {found[0]} ({what})"
    return ""


def _check_weights(folder: Path, listed: Collection[str]) -> None:
    """Check that all safetensors files that transformers reads exist and, if downloaded, are complete."""
    if (folder / SINGLE_FILE).is_file():
        _tensors(folder / SINGLE_FILE)
    if (folder / SINGLE_FILE).is_file() or SINGLE_FILE in listed:
        return
    index = folder / INDEX_FILE
    if not index.is_file():
        raise _refused(
            folder, f"is not a checkpoint folder: it has no {SINGLE_FILE}{_describe_content(folder, listed)}"
        )
    _check_shards(folder, _weight_map(index), listed)


def _weight_map(index: Path) -> dict[str, str]:
    """Return the file of each weight in an index."""
    content = _read_json(index)
    weight_map = content["weight_map"]
    if not isinstance(weight_map, dict) or not all(map(_is_shard_name, weight_map.values())):
        raise _refused(index, "is not valid: expected a weight_map from names of weights to names of safetensors files")
    if not isinstance(content.get("metadata"), dict):
        raise _refused(index, "has no 'metadata', without which transformers reads no shards; {} will do")
    return {**weight_map}


def _is_shard_name(name: object) -> bool:
    return isinstance(name, str) and name.endswith(".safetensors") and Path(name).name == name


def _check_shards(folder: Path, weight_map: Mapping[str, str], listed: Collection[str]) -> None:
    """Check that shards have the weights listed in the index, each once, since a duplicate could replace a value."""
    held: dict[str, str] = {}
    for name in sorted({*weight_map.values()}):
        shard = folder / name
        if not isfile(shard):  # Path.is_file raises an error for names that are too long
            if name in listed:
                continue
            raise _refused(folder, f"lacks {name[:200]}, which {INDEX_FILE} names; is the download complete?")
        found = _tensors(shard)
        if missing := sorted({key for key, file in weight_map.items() if file == name} - found):
            raise _refused(shard, f"has no {missing[0]}, which {INDEX_FILE} says it has ({len(missing)} such weights)")
        if twice := sorted(found & held.keys()):
            raise _refused(shard, f"has {twice[0]}, which {held[twice[0]]} has, too; expected each weight once")
        held |= dict.fromkeys(found, name)


def _tensors(path: Path) -> set[str]:
    """Return the names of a file's tensors. Read only the header, whose sizes must match the size of the file."""
    try:
        with safe_open(path, "pt") as file:
            types = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 # not a mapping
    except (SafetensorError, OSError) as error:
        raise _refused(path, f"is not a whole safetensors file: {error}; is the download complete?") from error
    if any(".quant_state.bitsandbytes__" in name for name in types):
        return {*types}
    for name, kind in sorted(types.items()):
        if kind.startswith(QUANTISED_TYPES):
            raise _quantised(path, name, kind)
        is_weight = kind in ("F64", "C64") or name.endswith((".weight", ".bias"))
        if is_weight and kind not in STORED_TYPES:
            raise _refused(path, f"holds {name} as {kind}; expected weights in {', '.join(STORED_TYPES)}")
    return {*types}
