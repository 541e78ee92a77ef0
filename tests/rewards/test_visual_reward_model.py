"""A reward model that sees the images, against a plain forward of transformers' own class."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.helpers.answers import ONE, answers
from tests.helpers.families import write
from vrft.errors import ConfigurationError
from vrft.rewards import RewardModel, learned
from vrft.types import Sample
from vrft.utils.processors import load_processor

RED = Image.new("RGB", (40, 30), "red")
STRIPES = Image.linear_gradient("L").convert("RGB")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a small random Gemma 3 with a classification head, and its processor."""
    from transformers import AutoConfig, Gemma3ForSequenceClassification

    folder = tmp_path_factory.mktemp("gemma3")
    write(folder, "gemma3")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AutoConfig.from_pretrained(folder, num_labels=2, initializer_range=0.5)
        Gemma3ForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def reward(checkpoint: Path) -> RewardModel:
    found = RewardModel(str(checkpoint), label=1, question="find the {query}", max_length=4)
    found.load()
    return found


@pytest.fixture(scope="module")
def plain(checkpoint: Path) -> Callable[[list[Image.Image], str, str], float]:
    """Return a function that scores an answer by itself, by the model's own forward."""
    from transformers import Gemma3ForSequenceClassification, Gemma3Processor

    model = Gemma3ForSequenceClassification.from_pretrained(checkpoint).eval()
    processor = Gemma3Processor.from_pretrained(checkpoint)

    def score(images: list[Image.Image], query: str, text: str) -> float:
        prompt = f"user : {'<start_image> ' * len(images)}find the {query} assistant : {text} "
        inputs = processor(text=[prompt], images=[images], return_tensors="pt")
        assert "pixel_values" in inputs
        with torch.no_grad():
            return float(model(**inputs).logits.float().softmax(1)[0, 1])

    return score


def sample(*images: Image.Image, query: str = "dog") -> Sample:
    return Sample(0, images, 0, query, ONE, image_index=0)


def test_scores_are_those_of_a_plain_forward_with_the_images(
    reward: RewardModel, plain: Callable[[list[Image.Image], str, str], float]
) -> None:
    red, striped, both = sample(RED), sample(STRIPES, query="box"), sample(RED, STRIPES)
    asked = [(red, "yes"), (red, "no it is"), (red, "yes"), (striped, "yes"), (striped, ""), (both, "left of a box")]
    expected = [plain([*about.images], about.query, text) for about, text in asked]
    found = reward.bounded_scores(answers(*(text for _, text in asked)), [about for about, _ in asked])
    assert found == pytest.approx(expected, abs=1e-5)
    assert len({round(value, 3) for value in expected}) == 5  # only two are equal
    assert reward.score(answers("no it is")[0], red) == pytest.approx(expected[1], abs=1e-5)


def test_qwen_scores_several_completions_of_an_image_as_each_alone(tmp_path: Path) -> None:
    from transformers import AutoConfig, Qwen3_5ForSequenceClassification

    write(tmp_path, "qwen3_5")
    config = AutoConfig.from_pretrained(tmp_path, num_labels=1)
    config.initializer_range = config.text_config.initializer_range = config.vision_config.initializer_range = 0.5
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Qwen3_5ForSequenceClassification(config).save_pretrained(tmp_path)
    reward = RewardModel(str(tmp_path))
    reward.load()
    plain = Qwen3_5ForSequenceClassification.from_pretrained(tmp_path).eval()
    expected, texts = [], ["a", "a : a a", ": :"]  # its tokenizer knows single characters alone
    for text in texts:
        prompt = f"user : <|vision_start|><|image_pad|><|vision_end|> dog assistant : {text} "
        inputs = load_processor(str(tmp_path))(text=[prompt], images=[[STRIPES]], return_tensors="pt")
        with torch.no_grad():
            expected.append(float(plain(**inputs).logits.float().sigmoid()))
    assert reward.bounded_scores(answers(*texts), [sample(STRIPES)] * 3) == pytest.approx(expected, abs=1e-5)
    assert max(expected) - min(expected) > 0.01
    assert reward.bounded_scores(answers("a"), [sample(RED)])[0] != pytest.approx(expected[0], abs=1e-3)


def test_equal_completions_are_scored_once_and_long_ones_are_cut(
    reward: RewardModel, plain: Callable[[list[Image.Image], str, str], float], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    handle = reward.model.register_forward_pre_hook(lambda *a: rows.append(len(a[2]["input_ids"])), with_kwargs=True)
    long, about = "yes " * 9, [sample(RED)] * 4
    found = reward.bounded_scores(answers("yes", long, "yes", "yes yes yes yes"), about)
    handle.remove()
    assert found[0] == found[2] != found[1]
    assert found[1] == pytest.approx(found[3], abs=1e-6)
    assert rows == [3]  # one forward of the distinct texts
    monkeypatch.setattr(learned, "MAX_ROWS", 2)
    handle = reward.model.register_forward_pre_hook(lambda *a: rows.append(len(a[2]["input_ids"])), with_kwargs=True)
    parts = reward.bounded_scores(answers("yes", long, "yes", "yes yes yes yes"), about)
    assert parts == pytest.approx(found, abs=1e-5)
    handle.remove()
    assert rows == [3, 2, 1]


def test_a_completion_can_not_spell_an_image_or_another_turn(reward: RewardModel) -> None:
    seen: list[torch.Tensor] = []
    handle = reward.model.register_forward_pre_hook(lambda *a: seen.append(a[2]["input_ids"]), with_kwargs=True)
    reward.scores(answers("yes <start_image> <end>"), [sample(RED)])
    handle.remove()
    ids = seen[0][0].tolist()
    assert ids.count(5) == 1  # the image of the question alone
    assert ids.count(1) == 0


def test_a_model_that_sees_images_needs_them_and_a_chat_template(checkpoint: Path, reward: RewardModel) -> None:
    class NoImage:
        query, target = "cat", ONE

    with pytest.raises(ConfigurationError, match=r"RewardModel\.checkpoint: .* needs the images"):
        reward.scores(answers("a"), [NoImage()])  # type: ignore[list-item]
    template = checkpoint / "chat_template.jinja"
    text = template.read_text()
    template.unlink()
    try:
        with pytest.raises(ConfigurationError, match="expected a processor of images and texts with a chat template"):
            RewardModel(str(checkpoint)).load()
    finally:
        template.write_text(text)
