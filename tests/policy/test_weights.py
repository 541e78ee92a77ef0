"""Checkpoints whose weights are not those of their config, which transformers would fill up with random numbers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.helpers import families
from vrft.errors import ConfigurationError
from vrft.policy import Policy
from vrft.policy.checkpoint import BUILT_IN
from vrft.policy.export import export_policy
from vrft.utils.processors import load_processor

Weights = dict[str, Tensor]
LAYER = "model.layers.1.mlp.up_proj.weight"


def without(*keys: str) -> Callable[[Weights], Weights]:
    return lambda weights: {key: value for key, value in weights.items() if not any(part in key for part in keys)}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return Path(shutil.copytree(BUILT_IN / "tiny-detection", tmp_path / "folder"))


def change(folder: Path, edit: Callable[[Weights], Weights]) -> None:
    save_file(edit(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (without(LAYER), "lack model.language_model.layers.1.mlp.up_proj.weight;"),
        (without("mlp"), " and 15 more;"),
        (without("visual"), "lack model.visual.blocks.0"),
        (
            lambda weights: weights | {LAYER: torch.zeros(3, 5)},
            "model.language_model.layers.1.mlp.up_proj.weight (3 x 5, expected 192 x 64)",
        ),
        (lambda weights: weights | {"model.layers.2.bias": torch.zeros(3)}, "layers.2.bias"),
        (lambda weights: weights | {"value_head.weight": torch.zeros(3)}, "value_head.weight"),
    ],
)
def test_weights_of_another_model_are_refused(checkpoint: Path, edit: Callable[[Weights], Weights], said: str) -> None:
    change(checkpoint, edit)
    with pytest.raises(ConfigurationError, match=r"model\.policy\.checkpoint: .*folder") as caught:
        Policy(str(checkpoint)).load(keep_reference=False)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tied_and_ignorable_weights_may_be_missing_or_present(checkpoint: Path) -> None:
    embedding = "model.embed_tokens.weight"
    change(checkpoint, lambda weights: weights | {"lm_head.weight": weights[embedding].clone()})
    change(checkpoint, lambda weights: weights | {"visual.rotary_pos_emb.inv_freq": torch.zeros(4)})
    change(checkpoint, lambda weights: weights | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)})
    Policy(str(checkpoint)).load(keep_reference=False)
    change(checkpoint, without("lm_head"))
    Policy(str(checkpoint)).load(keep_reference=False)


@pytest.mark.parametrize("name", ["preprocessor_config.json", "processor_config.json"])
def test_the_image_processor_of_the_first_qwen2_5_vl_checkpoints_loads_and_is_exported(
    tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "published"
    families.write(folder, "qwen2_5_vl")
    expected = load_processor(str(folder)).image_processor
    image = json.loads((folder / "preprocessor_config.json").read_text()) | {
        "image_processor_type": "Qwen2_5_VLImageProcessor"
    }
    if name == "processor_config.json":
        (folder / "preprocessor_config.json").unlink()
        image = json.loads((folder / name).read_text()) | {"image_processor": image}
    (folder / name).write_text(json.dumps(image))
    policy = Policy(str(folder), dtype="float32")
    policy.load(keep_reference=False)
    assert policy.processor.image_processor.to_dict() == expected.to_dict()
    export_policy(policy, tmp_path / "exported", policy.trained_weights(), 8)
    assert load_processor(str(tmp_path / "exported")).image_processor.to_dict() == expected.to_dict()
    assert "Qwen2_5_VLImageProcessor" not in (tmp_path / "exported" / name).read_text()
