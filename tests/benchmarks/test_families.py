"""The table of model types in docs/families.md."""

from __future__ import annotations

import re

import families
import pytest
import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from tests.helpers import ROOT
from vrft.policy.decoding_forward import DecodingCheck
from vrft.policy.decoding_model import TokenForward
from vrft.policy.prompts import prepare_prompts
from vrft.policy.shared_prefix import group_hidden_states, share_prefixes
from vrft.rollout.decoding import GroupDecoder, Prefilled
from vrft.rollout.group_cache import GroupCache

PAGE = (ROOT / "docs" / "families.md").read_text()
ROWS = {line.split("`")[1]: line for line in PAGE.partition("\n## ")[0].splitlines() if line.startswith("| `")}
VERSION = re.findall(r"^Made on [\d-]+ with transformers ([\d.]+):$", PAGE, re.MULTILINE)


def test_every_type_has_a_row() -> None:
    (made,) = VERSION
    known = {*MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES}
    if transformers.__version__.split(".")[:2] == made.split(".")[:2]:
        assert known == {*ROWS}
    else:
        assert len(known & {*ROWS}) > 0.9 * len(known)


@pytest.mark.slow(seconds=2)
@pytest.mark.parametrize("kind", ["hyperclovax_vision_v2", "ernie4_5_vl_moe", "qwen3_5", "evolla", "mllama"])
def test_a_row_is_what_the_script_finds(kind: str) -> None:
    found = families.bounded_row(kind)
    assert [*families.table([found])][-1] == ROWS[kind]


def test_no_type_lacks_a_result() -> None:
    assert not [kind for kind, line in ROWS.items() if "not built" in line]


def test_a_window_of_a_model_without_layer_types_limits_the_sampler_too() -> None:
    model = families.build("idefics2")  # as Mistral, it has one window for all layers
    prompt = families.prompt_of(model, families.image_processor("idefics2", model.config))
    assert prompt["input_ids"].shape[1] > model.config.text_config.sliding_window
    assert share_prefixes(model)
    ids = torch.tensor([[50, 60, 70]])
    with torch.no_grad():
        expected = group_hidden_states(model, [prompt], ids, [3])
        prefilled = Prefilled.of(model, prepare_prompts(model, [prompt], False))
        forward = TokenForward(model, None, DecodingCheck(model))
        decoder = GroupDecoder(forward, prefilled, GroupCache(prefilled.cache, model, 1, 3), 1)
        hidden = torch.cat([decoder.hidden, *(decoder.step(ids[:, t]) for t in range(2))])
    torch.testing.assert_close(hidden, expected, atol=1e-5, rtol=0)


def test_a_type_that_takes_too_long_or_too_much_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "row", lambda kind: [bytes(2**34)])
    assert families.bounded_row("qwen2_vl").prompt == "not built: no end within 300 s and 8 GB"
