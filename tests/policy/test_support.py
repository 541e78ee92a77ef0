"""Model types that vrft can't train are refused before their weights are read."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig

from tests.policy.test_logprobs import LargestMemory
from vrft.errors import ConfigurationError
from vrft.policy import Policy
from vrft.policy.checkpoint import BUILT_IN
from vrft.policy.head import logits_of
from vrft.training.checks import SharedPromptCheck
from vrft.types import PromptBatch


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("florence2", "a florence2 can't be trained: it is an encoder-decoder"),
        ("mllama", "a mllama can't be trained: its vision tower can't be run alone"),
        ("git", "a git can't be trained: its attention is not computed by sdpa"),
        ("evolla", "a evolla can't be trained: it answers questions about proteins"),
    ],
)
def test_a_type_without_what_a_step_needs_is_refused(tmp_path: Path, kind: str, said: str) -> None:
    folder = Path(shutil.copytree(BUILT_IN / "tiny-detection", tmp_path / "folder"))
    AutoConfig.for_model(kind).save_pretrained(folder)
    with pytest.raises(ConfigurationError, match=r"model\.policy\.checkpoint: .*folder") as caught:
        Policy(str(folder)).load(keep_reference=False)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "fields", "expected"),
    [
        ("gemma4", {"final_logit_softcapping": 5.0}, [5 * math.tanh(0.4), 5 * math.tanh(-1.6)]),
        ("gemma4", {"final_logit_softcapping": None}, [2.0, -8.0]),
        ("gemma3", {"final_logit_softcapping": 5.0}, [2.0, -8.0]),  # its image-text-to-text model ignores the field
        ("cohere_compass", {"logit_scale": 0.25}, [0.5, -2.0]),
        ("cohere2_vision", {"logit_scale": 0.25}, [2.0, -8.0]),
        ("inkling_mm_model", {"logits_mup_width_multiplier": 4.0}, [0.5, -2.0]),
        (
            "muse_spark",
            {"output_multiplier": 0.5, "final_logit_softcapping": 5.0},
            [5 * math.tanh(0.2), 5 * math.tanh(-0.8)],
        ),
    ],
)
def test_logits_are_scaled_and_capped_as_in_the_models_own_forward(
    kind: str, fields: dict[str, float], expected: list[float]
) -> None:
    config = SimpleNamespace(model_type=kind, get_text_config=lambda: SimpleNamespace(**fields))
    model = SimpleNamespace(config=config, get_output_embeddings=lambda: lambda hidden: 2 * hidden)
    assert logits_of(model)(torch.tensor([1.0, -4.0])).tolist() == pytest.approx(expected)  # type: ignore[arg-type]


def test_capping_takes_two_copies_of_the_logits() -> None:
    config = SimpleNamespace(model_type="gemma4", get_text_config=lambda: SimpleNamespace(final_logit_softcapping=5.0))
    model = SimpleNamespace(config=config, get_output_embeddings=lambda: lambda hidden: 2 * hidden)
    hidden = torch.randn(4, 1000)
    with LargestMemory() as memory:
        logits_of(model)(hidden)  # type: ignore[arg-type]
    assert memory.largest == 2 * hidden.nbytes


def test_a_model_whose_log_probabilities_are_not_its_own_is_not_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    gaps = iter([(2.0, 0.1), (1.0, 0.1), (1.5, 0.1)])
    policy = SimpleNamespace(shares_prefixes=True, base=None, reference=None, fused=True)
    monkeypatch.setattr("vrft.training.checks.sharing_gap", lambda *_: next(gaps))
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device="cpu", reduce=lambda values, **_: values))
    ids = torch.ones(2, 3)
    with (
        pytest.warns(UserWarning, match="layers compute as in transformers instead"),
        pytest.warns(UserWarning, match="prompts are repeated instead"),
        pytest.raises(ConfigurationError, match=r"with a repeated prompt differ from the model's own by 1\.5"),
    ):
        SharedPromptCheck()(trainer, policy, PromptBatch([], [], [{}]), ids, ids)  # type: ignore[arg-type]
    assert not policy.shares_prefixes
    assert not policy.fused
