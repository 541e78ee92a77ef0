"""Checkpoints in their published form load whole, train, and are exported as what they were."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image, ImageFilter
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor
from transformers.utils import is_torchvision_available

from tests.helpers.published import Form, write
from tests.helpers.published_forms import FORMS
from vrft import RFT
from vrft.data import VisionData
from vrft.errors import ConfigurationError
from vrft.policy import LoRA, Policy, chat_template
from vrft.policy.export import export_policy
from vrft.rewards import Reward
from vrft.rollout import Sampling, SamplingKey, TransformersEngine
from vrft.tasks import DetectionTask
from vrft.types import Answer, Question, Sample
from vrft.utils.processors import load_processor

pytestmark = pytest.mark.slow(seconds=1)

TASK = DetectionTask(template="Detect {query}")
TOKENS = 3
Published = tuple[Path, Form, dict[str, Tensor]]


class Alternating(Reward):
    """Scores every second completion, whatever it says."""

    scored = 0

    def score(self, answer: Answer, sample: Question) -> float:
        self.scored += 1
        return float(self.scored % 2)


class Photos(VisionData):
    """Photos without boxes."""

    def __init__(self, samples: list[Sample]) -> None:
        super().__init__(batch_size=len(samples), eval_batch_size=1, num_workers=0, seed=0)
        self.samples = samples

    def train_set(self) -> Any:
        return self.samples

    val_set = train_set


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Published]:
    made: dict[str, Published] = {}

    def make(family: str) -> Published:
        if family not in made:
            folder, form = tmp_path_factory.mktemp("published"), FORMS[family]()
            made[family] = folder, form, write(folder, form)
        return made[family]

    return make


@pytest.fixture(autouse=True)
def _templates_are_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the check of templates in a process of its own, which takes longer than the rest."""
    monkeypatch.setattr(chat_template, "template_problem", lambda *_: None)


def photo(width: int, height: int) -> Image.Image:
    torch.manual_seed(width)
    return Image.effect_noise((width, height), 60).convert("RGB")


def processor_of(folder: Path) -> Any:
    """Return AutoProcessor's processor; without torchvision, it refuses those that have a video processor."""
    return AutoProcessor.from_pretrained(folder) if is_torchvision_available() else load_processor(str(folder))


def own_prompt(processor: Any, image: Image.Image, question: str) -> dict[str, Any]:
    content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    return dict(
        processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
    )


def assert_same_prompt(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    assert found["input_ids"].tolist() == expected["input_ids"].tolist()
    for key, value in expected.items():
        assert torch.equal(torch.as_tensor(found[key]), torch.as_tensor(value)), key


@pytest.mark.parametrize("family", FORMS)
def test_a_published_checkpoint_is_read_as_its_authors_meant(
    family: str, published: Callable[[str], Published]
) -> None:
    folder, form, weights = published(family)
    policy = Policy(str(folder))
    policy.load(keep_reference=False)
    assert policy.stop_ids.tolist() == form.stop
    assert policy.family_coordinates == form.coordinates
    loaded = {published_name(form, name): value for name, value in policy.base.state_dict().items()}
    for name, stored in weights.items():
        if name not in form.extra:
            value = loaded[name].transpose(1, 2) if re.search(form.transposed, name) else loaded[name]
            assert torch.equal(value.float(), stored.float()), name
    sample = Sample(0, (photo(600, 400),), 0, "a bird", ())
    prompt = policy.encoder(TASK)([sample]).inputs[0]
    assert int((prompt["input_ids"] == policy.base.config.image_token_id).sum()) == form.image_tokens
    assert_same_prompt(prompt, own_prompt(load_processor(str(folder)), sample.image, "Detect a bird"))


def published_name(form: Form, name: str) -> str:
    for pattern, replacement in form.renames:
        name = re.sub(pattern, replacement, name)
    return name


@pytest.mark.parametrize("family", FORMS)
def test_a_limit_that_a_family_lacks_is_refused_before_weights_are_read(
    family: str, published: Callable[[str], Published], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, form, _ = published(family)
    monkeypatch.setattr("vrft.policy.reading.load_pretrained", lambda *_, **__: pytest.fail("read"))
    for name, value in (("max_pixels", 401408), ("max_tiles", 4)):
        if name not in form.limits:
            with pytest.raises(ConfigurationError, match=rf"model\.policy\.{name}={value}: .*{name}=null$"):
                Policy(str(folder), **{name: value}).load(keep_reference=False)


def train(policy: Policy, samples: list[Sample]) -> None:
    """Run one step of RFT."""
    module = RFT(
        TASK,
        policy,
        {"alternating": Alternating()},
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.5),
        num_generations=2,
        max_completion_length=TOKENS,
        temperature=3.0,
    )
    quiet: dict[str, Any] = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    trainer = Trainer(accelerator="cpu", max_steps=1, enable_model_summary=False, limit_val_batches=0, **quiet)
    trainer.fit(module, Photos(samples))
    assert int(module.steps_done) == 1


def greedy_answer(policy: Policy, samples: list[Sample]) -> list[int]:
    batch = policy.prepare(policy.encoder(TASK)(samples))
    rollout = TransformersEngine().generate(
        policy,
        batch,
        1,
        max_completion_length=TOKENS,
        sampling=Sampling(greedy=True),
        key=SamplingKey(0, 0),
        on_token=lambda *_: None,
    )
    return rollout.ids[0][rollout.mask[0].bool()].tolist()


def stored(folder: Path) -> dict[str, Tensor]:
    """Return the weights in a folder's safetensors."""
    return {name: value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}


def assert_same_answer(model: Any, prompt: dict[str, Any], answer: list[int]) -> None:
    """Assert that `generate` gives the answer, up to ties of two tokens in bfloat16, after which all may differ."""
    inputs = {k: v.to(model.dtype) if v.is_floating_point() else v for k, v in prompt.items()}
    output = model.generate(**inputs, return_dict_in_generate=True, output_scores=True)
    ids = output.sequences[0, prompt["input_ids"].shape[1] :].tolist()
    for own, other, (scores,) in zip(ids, answer, output.scores, strict=True):
        assert scores[other] > scores[own] - 0.5
        if own != other:
            return


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("family", FORMS)
def test_a_published_checkpoint_trains_and_is_exported_as_what_it_was(
    family: str, lora: bool, published: Callable[[str], Published], tmp_path: Path
) -> None:
    folder, form, weights = published(family)
    policy = Policy(str(folder), lora=LoRA(r=2) if lora else None, **form.limits)  # type: ignore[arg-type]
    samples = [Sample(0, (photo(600, 400),), 0, "a bird", ())]  # exceeds the limits
    train(policy, samples)
    export_policy(policy, tmp_path, policy.trained_weights(), TOKENS)

    shapes = {name: list(value.shape) for name, value in weights.items() if name not in form.extra}
    assert {name: list(value.shape) for name, value in stored(tmp_path).items()} == shapes
    changed = [k for k, value in stored(tmp_path).items() if not torch.equal(value, weights[k].to(value.dtype))]
    assert changed
    if lora:  # the rest is stored bit by bit as it was, in the published layout
        assert not [name for name in changed if re.search("vis|embed|norm|experts|lm_head|multi_modal|connector", name)]
    exported = AutoModelForImageTextToText.from_pretrained(tmp_path)
    prompt = own_prompt(processor_of(tmp_path), samples[0].image, "Detect a bird")
    assert_same_prompt(prompt, policy.encoder(TASK)(samples).inputs[0])
    assert_same_answer(exported, prompt, greedy_answer(policy, samples))


def test_an_adapter_alone_cannot_hold_llavas_grids(published: Callable[[str], Published], tmp_path: Path) -> None:
    policy = Policy(str(published("llava_onevision")[0]), lora=LoRA(r=2), max_tiles=1)
    with pytest.raises(ConfigurationError, match=r"max_tiles changes image_grid_pinpoints in the model's config\.json"):
        export_policy(policy, tmp_path, {}, TOKENS, adapter_alone=True)
    assert not [*tmp_path.iterdir()]


@pytest.mark.skipif(not is_torchvision_available(), reason="needs torchvision")
@pytest.mark.parametrize("family", FORMS)
def test_torchvision_changes_no_token_and_no_pixel_by_more_than_rounding(
    family: str, published: Callable[[str], Published]
) -> None:
    folder, _, _ = published(family)
    image = photo(600, 400).filter(ImageFilter.GaussianBlur(1.5))  # no edges that interpolation overshoots
    with_torchvision = load_processor(str(folder))
    config = AutoConfig.from_pretrained(folder)  # for the early name
    pil = AutoImageProcessor.from_pretrained(folder, backend="pil", config=config)
    assert type(pil) is not type(with_torchvision.image_processor)
    prompts = [own_prompt(with_torchvision, image, "Detect a bird")]
    with_torchvision.image_processor = pil
    prompts.append(own_prompt(with_torchvision, image, "Detect a bird"))
    assert prompts[0]["input_ids"].tolist() == prompts[1]["input_ids"].tolist()
    grey = 1 / 255 / min(pil.image_std)
    gap = (prompts[0]["pixel_values"] - prompts[1]["pixel_values"]).abs().max() / grey
    assert gap < 3.01  # Idefics3 and SmolVLM resize twice
