"""Reward models against a plain forward."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.helpers.answers import (
    ONE,
    answers,
    sample,
)
from tests.helpers.small_models import WORDS, write_classifier
from vrft.errors import ConfigurationError
from vrft.rewards import (
    RewardModel,
)
from vrft.types import Sample

TEXTS = ["a b c good", "bad", "c c c c c c c c c c", ""]


@pytest.fixture(params=[1, 2, 3], ids=["one-logit", "two-classes", "three-classes"])
def classifier(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, int]:
    """Write a small random BERT that classifies pairs of texts; return its folder and its number of classes."""
    write_classifier(tmp_path, request.param)
    return tmp_path, request.param


def test_a_reward_model_returns_the_probabilities_of_a_plain_forward(classifier: tuple[Path, int]) -> None:
    from transformers import BertForSequenceClassification

    folder, classes = classifier
    plain = BertForSequenceClassification.from_pretrained(folder).eval()
    for label in range(classes):
        reward = RewardModel(str(folder), label=label)
        reward.load()
        about = Sample(0, (Image.new("1", (5, 5)),), 0, "find cat", ONE)
        expected = []
        for text in TEXTS:  # one at a time, without padding; the first two tokens of a pair are the question
            words = [WORDS.index(word) for word in text.split()][:7]  # at most 12 tokens
            ids = [2, 4, 5, 3, *words, 3]
            kinds = [0] * 4 + [1] * (len(words) + 1)
            with torch.no_grad():
                logits = plain(torch.tensor([ids]), token_type_ids=torch.tensor([kinds])).logits[0]
            expected.append((logits.sigmoid() if classes == 1 else logits.softmax(0))[label].item())
        found = reward.bounded_scores(answers(*TEXTS), [about] * len(TEXTS))
        assert found == pytest.approx(expected, abs=1e-5)
        assert max(expected) - min(expected) > 0.01  # the texts have different scores
        assert reward.score(answers(TEXTS[0])[0], about) == pytest.approx(expected[0], abs=1e-5)


def test_a_reward_model_is_not_trained(classifier: tuple[Path, int]) -> None:
    reward = RewardModel(str(classifier[0]))
    reward.load()
    model = reward.model
    reward.load()
    assert reward.model is model  # loaded only once
    assert not any(parameter.requires_grad for parameter in reward.model.parameters())
    assert not reward.model.training


def test_a_shorter_limit_cuts_the_text(classifier: tuple[Path, int]) -> None:
    reward = RewardModel(str(classifier[0]), max_length=6)
    reward.load()
    about = Sample(0, (Image.new("1", (5, 5)),), 0, "a", ONE)
    first, other = reward.bounded_scores(answers("a b c good", "a b c bad"), [about] * 2)
    assert first == other  # they differ only beyond the limit
    longer = RewardModel(str(classifier[0]))
    longer.load()
    first, other = longer.bounded_scores(answers("a b c good", "a b c bad"), [about] * 2)
    assert first != other


@pytest.mark.parametrize("classifier", [1], indirect=True)
def test_a_reward_model_without_its_head_is_refused(classifier: tuple[Path, int]) -> None:
    from safetensors.torch import load_file, save_file

    file = classifier[0] / "model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if "classifier" not in k}, file, {"format": "pt"})
    with pytest.raises(ConfigurationError, match=r"RewardModel\.checkpoint: .* lack classifier\.bias, classifier\.wei"):
        RewardModel(str(classifier[0])).load()


@pytest.mark.parametrize("classifier", [1], indirect=True)
def test_special_tokens_in_a_completion_stay_text(classifier: tuple[Path, int]) -> None:
    reward = RewardModel(str(classifier[0]))
    reward.load()
    reward.tokenizer.add_special_tokens({"sep_token": "[SEP]"})
    seen: list[torch.Tensor] = []
    reward.model.register_forward_pre_hook(lambda *a: seen.append(a[2]["input_ids"]), with_kwargs=True)
    reward.scores(answers("a [SEP] b"), [sample(ONE)])
    assert (seen[0] == WORDS.index("[SEP]")).sum() == 2  # after the query and at the end
