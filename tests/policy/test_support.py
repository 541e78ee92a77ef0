"""Model types that vrft can't train are refused before their weights are read."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig

from vrft.errors import ConfigurationError
from vrft.policy import Policy
from vrft.policy.checkpoint import BUILT_IN
from vrft.training.checks import SharedPromptCheck
from vrft.types import PromptBatch


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("florence2", "a florence2 can't be trained: it is an encoder-decoder"),
        ("mllama", "a mllama can't be trained: its vision tower can't be run alone"),
    ],
)
def test_a_type_without_what_a_step_needs_is_refused(tmp_path: Path, kind: str, said: str) -> None:
    folder = Path(shutil.copytree(BUILT_IN / "tiny-detection", tmp_path / "folder"))
    AutoConfig.for_model(kind).save_pretrained(folder)
    with pytest.raises(ConfigurationError, match=r"model\.policy\.checkpoint: .*folder") as caught:
        Policy(str(folder)).load(keep_reference=False)
    assert said in str(caught.value)


def test_a_model_whose_log_probabilities_are_not_its_own_is_not_trained() -> None:
    gaps = iter([(2.0, 0.1), (1.0, 0.1), (1.5, 0.1)])
    policy = SimpleNamespace(shares_prefixes=True, base=None, sharing_gap=lambda *_: next(gaps), fused=True)
    policy.unfuse = lambda: setattr(policy, "fused", False)
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
