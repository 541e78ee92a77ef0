"""The number of positions that a model supports: beyond it, sampler and trainer would compute different numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from tests.helpers import families
from tests.policy.test_families import Prompts, generate, load
from vrft.errors import ConfigurationError
from vrft.policy.positions import max_positions
from vrft.rollout import Sampling
from vrft.training.checks import check_prompt_lengths

FACTORS = {"short_factor": [1.0] * 4, "long_factor": [8.0] * 4}
LONGROPE = FACTORS | {"rope_type": "longrope", "original_max_position_embeddings": 32, "rope_theta": 1e4}


def config(rope_parameters: object, **text: object) -> Any:
    text |= {"model_type": "llama", "rope_parameters": rope_parameters, "max_position_embeddings": 128}
    return AutoConfig.for_model("llava_onevision", text_config=families.TEXT | text)


DEFAULT = {"rope_type": "default", "rope_theta": 1e4}


@pytest.mark.parametrize(
    ("rope_parameters", "expected"),
    [
        (None, 128),
        (DEFAULT, 128),
        ({"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}, 128),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 1e4}, 128),
        (LONGROPE, 32),
        ({key.replace("rope_type", "type"): value for key, value in LONGROPE.items()}, 32),
        (LONGROPE | {"original_max_position_embeddings": 4096}, 128),
        ({key: value for key, value in LONGROPE.items() if not key.startswith("original")}, 128),
        ({"sliding_attention": DEFAULT, "full_attention": LONGROPE}, 32),
        ({"sliding_attention": None, "full_attention": DEFAULT}, 128),
    ],
    ids=["none", "default", "dynamic", "yarn", "longrope", "old name", "longer", "no limit", "nested", "nested none"],
)
def test_longrope_limits_positions(rope_parameters: dict[str, Any] | None, expected: int) -> None:
    layers = [*(rope_parameters or {}), "full_attention"] if "full_attention" in (rope_parameters or {}) else None
    assert max_positions(config(rope_parameters, layer_types=layers)) == expected


@pytest.mark.parametrize("limit", ["32", None, 0, 32.5, float("nan"), float("inf"), True, [32]], ids=str)
def test_a_limit_of_longrope_that_is_no_number_is_refused(limit: object) -> None:
    wrong = config(LONGROPE | {"original_max_position_embeddings": limit})
    with pytest.raises(ConfigurationError, match=r"rope_parameters\.original_max_position_embe.*; expected"):
        max_positions(wrong)


def test_sampler_and_trainer_agree_up_to_the_limit_of_longrope(tmp_path: Path) -> None:
    file = Path(families.write(tmp_path, "llava_onevision")) / "config.json"
    fields = json.loads(file.read_text())
    lengths = [prompt["input_ids"].shape[1] for prompt in Prompts(load(str(tmp_path))).batch.inputs]
    tokens = 6
    fields["text_config"]["rope_parameters"] = LONGROPE | {"original_max_position_embeddings": max(lengths) + tokens}
    file.write_text(json.dumps(fields))
    policy = load(str(tmp_path))
    prompts = Prompts(policy).batch
    check_prompt_lengths(prompts, tokens, policy.max_positions)
    said = rf"{max(lengths)} tokens of prompt and 7 of .* {max(lengths) + tokens} \(.*longrope.*; lower model\.max_c"
    with pytest.raises(ConfigurationError, match=said):
        check_prompt_lengths(prompts, tokens + 1, policy.max_positions)

    def gap(tokens: int) -> float:
        batch = policy.prepare(prompts)
        rollout = generate(policy, batch, 2, Sampling(), tokens)
        with torch.no_grad():
            log_probs, _ = policy(batch.inputs, rollout.ids, rollout.mask, 1.0)
        return float((rollout.log_probs - log_probs).abs().max())

    assert gap(tokens) < 1e-5
    assert gap(tokens + 8) > 1e-3  # what the limit prevents
