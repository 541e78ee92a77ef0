"""What a run can have besides its policy: learned rewards, masks, examples, several images, and float16."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.small_models import write_classifier, write_sam
from tests.standin import four_bits  # noqa: F401
from tests.standin.conftest import Run, assert_same
from tests.standin.device import properties
from vrft import Predictor
from vrft.data.datasets.scenes import FreshScenes
from vrft.evaluators.segmenter import SamSegmenter
from vrft.tasks import DetectionTask

ONE_STEP = ("--model.policy.dtype=float32", "--trainer.max_steps=1")
LORA = ("--model.policy.lora.r=4", "--model.optimizer.lr=0.004")


def test_a_learned_reward_scores_on_the_gpu(on: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory) -> None:
    classifier = tmp_path_factory.mktemp("classifier")
    write_classifier(classifier, 2)
    learned = f"{{class_path: vrft.rewards.RewardModel, init_args: {{checkpoint: {classifier}}}}}"
    settings = (*ONE_STEP, f"--model.rewards.learned={learned}")
    expected, found = (on(device, *settings) for device in ("cpu", "cuda"))
    assert 0 < expected.metrics[0]["train/reward/learned"] < 1
    assert_same(expected, found, 2e-5)


def test_masks_of_boxes_are_the_same(tmp_path: Path) -> None:
    write_sam(tmp_path)
    image = Image.effect_noise((60, 40), 80).convert("RGB")
    masks = [SamSegmenter(str(tmp_path), device=device).segment(image, (5, 5, 30, 30)) for device in ("cpu", "cuda")]
    assert np.array_equal(*masks)


@pytest.mark.parametrize(
    "settings", [(), ("--model.policy.freeze_vision=true",)], ids=["trained tower", "frozen tower"]
)
def test_examples_in_prompts(settings: tuple[str, ...], on: Callable[..., Run]) -> None:
    more = (*ONE_STEP, *settings, "--data.examples=2", "--trainer.limit_val_batches=1")
    assert_same(*(on(device, *more) for device in ("cpu", "cuda")), 2e-5)


SELF = "{class_path: SelfPreference, init_args: {approval: This, disapproval: 'No'}}"
LATER = {
    "prompts and judge": (
        2e-5,
        *("--model.num_samples=6", "--model.difficulty={reward: iou, success: 0.5, floor: 0.2}"),
        *(f"--model.rewards.self={SELF}", "--model.reference_decay=0.9", "--model.entropy_weight=0.01"),
    ),
    "whole modules, 8 bits": (
        2e-4,  # a state of few bits is rounded up on one device and down on the other
        *(*LORA, "--model.policy.lora.modules_to_save=[visual.merger]", "--config=optimizer/adamw_8bit"),
        "--trainer.limit_val_batches=1",
    ),
    "stochastic rounding": (
        5e-3,
        *("--model.policy.dtype=bfloat16", "--model.policy.trained_dtype=bfloat16"),
        "--model.optimizer.class_path=tests.training.test_stochastic_rounding.StochasticSGD",
    ),
}


@pytest.mark.parametrize(("rounding", "settings"), [(case[0], case[1:]) for case in LATER.values()], ids=LATER)
def test_settings_of_sampling_rewards_and_optimizers(
    rounding: float, settings: tuple[str, ...], on: Callable[..., Run]
) -> None:
    assert_same(*(on(device, "--model.policy.dtype=float32", *settings) for device in ("cpu", "cuda")), rounding)


HALF = {
    "lora": LORA,
    "four bits": (*LORA, "--model.policy.quantize=nf4"),
    "four bits, checkpointed": (*LORA, "--model.policy.quantize=nf4", "--model.policy.gradient_checkpointing=true"),
}


@pytest.mark.parametrize("settings", HALF.values(), ids=HALF)
def test_adapters_train_in_float16(
    settings: tuple[str, ...], on: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(properties, "major", 7)
    whole, half = (
        on("cuda", f"--model.policy.dtype={dtype}", *settings, config="quickstart_sft")
        for dtype in ("float32", "float16")
    )
    for mine, yours in zip(whole.metrics, half.metrics, strict=True):
        assert yours["train/loss"] == pytest.approx(mine["train/loss"], rel=0.03)
        assert yours["train/grad_norm"] == pytest.approx(mine["train/grad_norm"], rel=0.03)
        assert (yours["train/loss_scale"], yours["train/skipped_steps"]) == (2**16, 0)


def test_reinforcement_in_float16(on: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(properties, "major", 7)
    half = ("--model.policy.dtype=float16", *LORA, "--model.policy.quantize=nf4", "--trainer.limit_val_batches=1")
    assert_same(*(on(device, *half) for device in ("cpu", "cuda")), 5e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_predictor_answers_the_same(dtype: str) -> None:
    task, image = DetectionTask("Detect {query}", confidence_decimals=1), FreshScenes(4, 0, seed=0)[0].image
    answers = [Predictor("tiny-detection", task, dtype, device)(image, "red") for device in ("cpu", "cuda")]  # type: ignore[arg-type]
    assert answers[0].valid
    assert answers[0] == answers[1]
