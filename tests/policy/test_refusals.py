"""Folders that can't be what the user means: one line that names the file, before anything long is read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.convert_slow_tokenizer import bytes_to_unicode

from vrft.errors import ConfigurationError
from vrft.policy import Policy
from vrft.policy.checkpoint import BUILT_IN, checkpoint_folder

Edit = Callable[[Path], None]
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 3219\n"
POINTED = ("model.safetensors", "tokenizer.json", "config.json", "chat_template.jinja", "preprocessor_config.json")
BROKEN = {"[]": "[]", "truncated": '{"model_type": "qwen2_vl", "mod', "utf-16": '{"a": 1}'.encode("utf-16")}
JSON_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "preprocessor_config.json",
    "generation_config.json",
    "model.safetensors.index.json",
)


def settings(name: str, **values: Any) -> Edit:
    def edit(folder: Path) -> None:
        path = folder / name
        content = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(content | values))

    return edit


def content(name: str, text: str | bytes) -> Edit:
    return lambda folder: (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode()) and None


def only(*names: str) -> Edit:
    """Return an edit that leaves files of these names alone, empty if they are new."""

    def edit(folder: Path) -> None:
        for path in folder.iterdir():
            if path.name not in names:
                path.unlink()
        for name in names:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).touch()

    return edit


def both(first: Edit, second: Edit) -> Edit:
    def edit(folder: Path) -> None:
        first(folder)
        second(folder)

    return edit


def without(*names: str) -> Edit:
    return lambda folder: [(folder / name).unlink() for name in names] and None


def renamed(old: str, new: str) -> Edit:
    return lambda folder: (folder / old).rename(folder / new) and None


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def shards(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    parts = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for file, keys in parts.items():
        save_file({key: weights[key] for key in keys}, folder / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {key: file for file, keys in parts.items() for key in keys}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()


def index(edit: Callable[[dict[str, str]], object]) -> Edit:
    def apply(folder: Path) -> None:
        shards(folder)
        path = folder / "model.safetensors.index.json"
        found = json.loads(path.read_text())
        edit(found["weight_map"])
        path.write_text(json.dumps(found))

    return apply


def stored_as(dtype: torch.dtype) -> Edit:
    def edit(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        weights[UP] = weights[UP].to(dtype)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    return edit


def twice(folder: Path) -> None:
    shards(folder)
    path = folder / "model-00002-of-00002.safetensors"
    first = load_file(folder / "model-00001-of-00002.safetensors")
    save_file(load_file(path) | {UP: first[UP] + 1}, path, {"format": "pt"})


UP = "model.layers.0.mlp.up_proj.weight"
ADAPTER = {"peft_type": "LORA", "base_model_name_or_path": "Qwen/Qwen2-VL-2B-Instruct"}
IMAGES = "preprocessor_config.json"
CASES: dict[str, tuple[Edit, str]] = {
    # folders of another kind
    "empty": (only(), "is empty"),
    "gguf": (only("model-Q4_K_M.gguf"), "no config.json, only model-Q4_K_M.gguf"),
    "a folder below": (only("checkpoint-100/config.json"), "only checkpoint-100/config.json (in a folder below"),
    "gguf with a config": (renamed("model.safetensors", "model.gguf"), "no model.safetensors, only model.gguf"),
    "pickled": (renamed("model.safetensors", "pytorch_model.bin"), "no model.safetensors, only pytorch_model.bin"),
    "consolidated": (renamed("model.safetensors", "consolidated.safetensors"), "only consolidated.safetensors (M"),
    "an adapter": (settings("adapter_config.json", **ADAPTER), "adapter of Qwen/Qwen2-VL-2B-Instruct (LORA)"),
    "a broken adapter": (content("adapter_config.json", "[]"), "adapter_config.json is not valid"),
    "no tokenizer": (without("tokenizer.json"), "has no tokenizer.json"),
    "half a tokenizer": (renamed("tokenizer.json", "vocab.json"), "has no merges.txt"),
    "no image processor": (without("preprocessor_config.json"), "has no preprocessor_config.json"),
    # models of another kind
    "text only": (settings("config.json", model_type="llama", vision_config=None), "'llama': a text-only model"),
    "text part": (settings("config.json", model_type="qwen2_vl_text"), "'qwen2_vl_text'"),
    "speech": (settings("config.json", model_type="whisper"), "'whisper': a model of sound"),
    "sound": (settings("config.json", model_type="qwen2_audio", audio_config={}), "'qwen2_audio': a model of sound"),
    "omni": (settings("config.json", model_type="qwen2_5_omni"), "expected a checkpoint of the part that answers"),
    "images only": (settings("config.json", model_type="clip"), "'clip': no model that answers questions"),
    "newer": (settings("config.json", model_type="qwen9_vl"), "'qwen9_vl', which transformers"),
    "no type": (settings("config.json", model_type=None), "config.json has no 'model_type'"),
    "types": (settings("config.json", model_type=["qwen2_vl"]), "expected the name of a model_type"),
    # quantised weights
    **{
        method: (settings("config.json", quantization_config={"quant_method": method}), f"config: {method})")
        for method in ("awq", "gptq", "compressed-tensors", "fp8", "bitsandbytes", "a-new-one")
    },
    "4 bits": (settings("config.json", quantization_config={"load_in_4bit": True}), "load_in_4bit"),
    "text part quantised": (
        settings("config.json", text_config={"quantization_config": {"quant_method": "awq"}}),
        "quantization_config: awq",
    ),
    "part of a part quantised": (
        settings("config.json", thinker_config={"text_config": {"quantization_config": {"quant_method": "gptq"}}}),
        "quantization_config: gptq",
    ),
    "old gptq": (settings("quantize_config.json", bits=4), "quantize_config.json says"),
    "mlx": (settings("config.json", quantization={"bits": 4}), "(quantization: {'bits': 4})"),
    "float8": (stored_as(torch.float8_e4m3fn), f"quantised ({UP}: F8_E4M3)"),
    # weights that training would round or take for others
    "float64": (stored_as(torch.float64), f"model.safetensors holds {UP} as F64; expected weights in F16, BF16, F32"),
    "integers": (stored_as(torch.int32), f"model.safetensors holds {UP} as I32; expected weights in F16, BF16, F32"),
    "twice": (twice, f"-00002-of-00002.safetensors has {UP}, which model-00001-of-00002.safetensors has, too"),
    # downloads that are not whole
    **{f"pointer {name}": (content(name, POINTER), f"{name} is a Git-LFS pointer") for name in POINTED},
    "cut": (cut, "model.safetensors is not a whole safetensors file"),
    "no weights": (content("model.safetensors", ""), "model.safetensors is not a whole safetensors file"),
    "html": (content("model.safetensors", "<!doctype html><html>" * 9), "is not a whole safetensors file"),
    "no shard": (index(lambda found: found.update(x="model-00003-of-00003.safetensors")), "lacks model-00003-of-00003"),
    "no such key": (index(lambda found: found.update(x="model-00001-of-00002.safetensors")), ".safetensors has no x"),
    "elsewhere": (
        index(lambda found: found.update(x="../model.safetensors")),
        "names of weights to names of safetensors files",
    ),
    "pickled shard": (index(lambda found: found.update(x="model-00001-of-00002.bin")), "names of safetensors files"),
    "above": (index(lambda found: found.update(x="..")), "names of safetensors files"),
    "long name": (index(lambda found: found.update(x="a" * 999 + ".safetensors")), "lacks aaaa"),
    "no metadata": (both(shards, settings("model.safetensors.index.json", metadata=None)), "has no 'metadata'"),
    "no index": (
        both(shards, without("model.safetensors.index.json")),
        "only model-00001-of-00002.safetensors (without model.safetensors.index.json",
    ),
    # broken texts
    **{
        f"{name} {kind}": (both(shards, content(name, text)), name)
        for name in JSON_FILES
        for kind, text in BROKEN.items()
    },
    "{} config.json": (content("config.json", "{}"), "config.json has no 'model_type'"),
    "{} tokenizer.json": (content("tokenizer.json", "{}"), "tokenizer.json has no 'model'"),
    "{} image processor": (content("preprocessor_config.json", "{}"), "preprocessor_config.json is empty: {}"),
    "{} generation config": (content("generation_config.json", "{}"), "generation_config.json is empty: {}"),
    "{} index": (both(shards, content("model.safetensors.index.json", "{}")), "index.json has no 'weight_map'"),
    # values of another kind
    "size": (settings(IMAGES, size={"longest_edge": "3136"}), f"{IMAGES} has size.longest_edge='3136'; expected a pos"),
    "old size": (settings(IMAGES, max_pixels="401408"), f"{IMAGES} has max_pixels='401408'; expected a positive"),
    "mean": (settings(IMAGES, image_mean=["0.5"] * 3), f"{IMAGES} has image_mean[0]='0.5'; expected a positive number"),
    "deviation": (settings(IMAGES, image_std=[0, 0, 0]), f"{IMAGES} has image_std[0]=0; expected a positive number"),
    "no": (settings(IMAGES, do_normalize="no"), f"{IMAGES} has do_normalize='no'; expected true or false"),
    "nested": (settings("processor_config.json", image_processor={"patch_size": 0}), "has patch_size=0; expected a"),
    "stop": (settings("generation_config.json", eos_token_id=["2"]), "has eos_token_id=['2']; expected the id of a"),
    "template in latin-1": (content("chat_template.jinja", "é".encode("latin-1")), "chat_template.jinja is not text"),
}


@pytest.mark.parametrize(("edit", "said"), CASES.values(), ids=CASES)
def test_a_folder_that_is_no_whole_checkpoint_is_refused_by_its_name(tmp_path: Path, edit: Edit, said: str) -> None:
    folder = Path(shutil.copytree(BUILT_IN / "tiny-detection", tmp_path / "folder"))
    edit(folder)
    with pytest.raises(ConfigurationError, match=r"model\.policy\.checkpoint: ") as caught:
        Policy(str(folder))
    message = str(caught.value)
    assert said in message
    assert str(folder) in message
    assert "\n" not in message


HUB_CASES = (
    *("pickled", "gguf", "an adapter", "no tokenizer", "no image processor", "text only", "awq", "old gptq"),
    *("pointer tokenizer.json", "no shard", "preprocessor_config.json truncated"),
)


@pytest.mark.parametrize("case", HUB_CASES)
def test_a_model_on_the_hub_is_refused_before_its_weights_are_downloaded(
    tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit, said = CASES[case]
    there = Path(shutil.copytree(BUILT_IN / "tiny-detection", tmp_path / "there"))
    edit(there)
    files = [path.relative_to(there).as_posix() for path in there.rglob("*") if path.is_file()]
    cache = tmp_path / "cache"

    def download(name: str, *, allow_patterns: list[str]) -> str:
        assert not [file for file in allow_patterns if file.endswith((".safetensors", ".bin", ".gguf"))]
        for file in allow_patterns:
            cache.mkdir(exist_ok=True)
            shutil.copyfile(there / file, cache / file)
        return str(cache)

    listed = SimpleNamespace(siblings=[SimpleNamespace(rfilename=file) for file in files])
    monkeypatch.setattr("huggingface_hub.model_info", lambda name, **_: listed)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(ConfigurationError, match=r"model\.policy\.checkpoint: someone/model[ /]") as caught:
        checkpoint_folder("someone/model")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (str(BUILT_IN / "tiny-detection" / "config.json"), "is a file; expected the folder"),
        (str(BUILT_IN / "tiny-detection" / "config.json" / "x"), "no such folder"),
        ("a" * 999, "no such folder"),
        ("", "is empty"),
    ],
    ids=["file", "in a file", "long", "empty"],
)
def test_a_name_of_no_folder_is_refused(name: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"^model\.policy\.checkpoint: .*{said}"):
        Policy(name)


TRUNCATION = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}


def undefined(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights[UP][3, 5] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


LATER: dict[str, tuple[Edit, str]] = {
    "config": (settings("config.json", text_config="large"), "can't load it"),
    "sizes": (settings("config.json", vision_config={"embed_dim": "64"}), "can't load it"),
    "tokenizer": (content("tokenizer.json", '{"model": {"type": "Nothing"}}'), "can't load it"),
    "image processor": (settings(IMAGES, image_processor_type="Nothing"), "image processor"),
    "no heads": (settings("config.json", text_config={"num_attention_heads": 0}), "can't load it: integer division"),
    # the processor of another model
    "fields": (settings(IMAGES, image_processor_type="CLIPImageProcessor"), "can't encode an image and a question"),
    "channels": (settings(IMAGES, image_mean=[0.5]), "can't encode an image and a question"),
    "patches": (
        settings(IMAGES, patch_size=16),
        f"{IMAGES} has patch_size=16, but vision_config in config",
    ),
    "image token": (settings("config.json", image_token_id=900), "no image token, which has id 900 in config.json"),
    "truncated prompts": (settings("tokenizer.json", truncation=TRUNCATION), "can't encode an image and a question"),
    "no such stop": (settings("generation_config.json", eos_token_id=[2, 5000]), "eos_token_id is [2, 5000]"),
    # weights
    "not a number": (undefined, f"undefined values in {UP.replace('model', 'model.language_model')}; download"),
}


@pytest.mark.parametrize(("edit", "said"), LATER.values(), ids=LATER)
def test_what_only_transformers_can_tell_is_one_line_too(tmp_path: Path, edit: Edit, said: str) -> None:
    folder = Path(shutil.copytree(BUILT_IN / "tiny-detection", tmp_path / "folder"))
    edit(folder)
    policy = Policy(str(folder))
    with pytest.raises(ConfigurationError, match=r"model\.policy\.checkpoint: .*folder") as caught:
        policy.load(keep_reference=False)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_token_that_ends_answers_is_enough(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(BUILT_IN / "tiny-detection", tmp_path / "folder"))
    settings("generation_config.json", eos_token_id=None)(folder)
    policy = Policy(str(folder))
    policy.load(keep_reference=False)
    assert policy.stop_ids.tolist() == [2]


def test_shards_load(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(BUILT_IN / "tiny-detection", tmp_path / "folder"))
    shards(folder)
    (folder / "results.json").write_text("[1, 2]")
    Policy(str(folder)).load(keep_reference=False)


def test_a_tokenizer_is_built_from_its_vocabulary_and_merges(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(BUILT_IN / "tiny-detection", tmp_path / "folder"))
    (folder / "tokenizer.json").unlink()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
    vocabulary = [*special, "<|video_pad|>", *bytes_to_unicode().values(), "de", "re"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\nd e\nr e\n")
    added = {str(i): {"content": token, "special": True} for i, token in enumerate(special)}
    settings("tokenizer_config.json", tokenizer_class="Qwen2Tokenizer", added_tokens_decoder=added)(folder)
    policy = Policy(str(folder), dtype="float32")
    policy.load(keep_reference=False)
    ids = policy.tokenizer("<|im_end|>red de", add_special_tokens=False)["input_ids"]
    names = ["<|im_end|>", "re", "d", "\u0120", "de"]
    assert ids == [vocabulary.index(name) for name in names]
