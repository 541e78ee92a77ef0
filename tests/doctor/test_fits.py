"""`fits`: what is computed from config.json alone is what a loaded policy has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoConfig

from tests.helpers import ROOT
from tests.helpers.sizes import PUBLISHED
from vrft.__main__ import main
from vrft.cli.named_configs import CONFIGS
from vrft.doctor.fits import WAYS, Request, count, fits, weights
from vrft.doctor.memory import RESERVE, stored_weights
from vrft.doctor.phases import GB, Phases, Workload
from vrft.doctor.shape import image_tokens, model_shape
from vrft.policy import LoRA, Policy
from vrft.policy.checkpoint import BUILT_IN

BY_NAME = {way.name: way for way in WAYS}


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("LoRA", {"lora": LoRA(r=4)}),
        ("LoRA", {"lora": LoRA(r=4, modules_to_save=["visual.merger", "mlp.up_proj"])}),
        ("LoRA, nf4", {"lora": LoRA(r=4), "quantize": "nf4"}),
        ("all, bf16, 8 bits", {"trained_dtype": "bfloat16"}),
        ("all, AdamW, beta=0", {}),
        ("all, AdamW, beta>0", {"reference": True}),
    ],
)
def test_weights_are_those_of_a_loaded_policy(name: str, settings: dict[str, object]) -> None:
    if "quantize" in settings:
        pytest.importorskip("bitsandbytes")
    reference = bool(settings.pop("reference", False))
    policy = Policy("tiny-detection", dtype="bfloat16", **settings)  # type: ignore[arg-type]
    policy.load(keep_reference=reference)
    expected = stored_weights(policy, optimizer=8)
    config = policy.base.config.__class__.from_pretrained(policy.checkpoint)
    whole = tuple(policy.lora.modules_to_save or ()) if policy.lora is not None else ()
    found = weights(BY_NAME[name], count(config, whole), rank=4)
    assert found.trained == expected.trained
    assert found.frozen == pytest.approx(expected.frozen, rel=2e-3)  # blocks at the end of a weight are not full
    assert (found.reference, found.item) == (expected.reference, expected.item)
    assert (found.modules, found.tower_trains) == (expected.modules, expected.tower_trains)
    assert found.copied == expected.copied


def test_weights_that_train_in_bfloat16_are_copied_to_fuse_attention_and_never_cast() -> None:
    config = AutoConfig.for_model(**PUBLISHED["Qwen2.5-VL-3B"])
    stored = weights(BY_NAME["all, bf16, 8 bits"], count(config), rank=0)
    assert stored.copied == 36 * 2048 * (2048 + 2 * 256)  # queries, keys and values of 36 layers
    work = Workload(1, 1, 1, 1, 1200, 1000, 256, 4096)
    shape = model_shape(config, torch.bfloat16)
    assert Phases(stored, shape, work, lora=False, checkpointing=True).casts() == 0


@pytest.mark.parametrize(("name", "gpu"), [("Qwen2.5-VL-7B", 16), ("Qwen2-VL-7B", 16), ("Qwen3-VL-8B", 24)])
def test_large_models_fit_in_four_bits(name: str, gpu: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED[name]))
    size = ["--image_tokens=1000", "--max_completion_length=256", "--num_generations=8"]
    assert main(["fits", f"--checkpoint={tmp_path}", f"--gpu_memory={gpu}", *size]) == 0
    rows = {line[:20].strip(): line.split() for line in capsys.readouterr().out.splitlines()}
    assert int(rows["LoRA, nf4"][-1]) >= 1
    assert rows["all, AdamW, beta=0"][-1] == "-"


def test_a_sleeping_server_takes_its_share_of_rollouts_and_little_else() -> None:
    """On 24 GB, 0.4 are 9.6 GB: room for a copy in four bits (7.2 GB), not for one in bfloat16 (17.5 GB)."""
    config = AutoConfig.for_model(**PUBLISHED["Qwen3-VL-8B"])
    request = Request(1000, 200, 256, 8, 4096, 16, True)
    alone = {fit.way.name: fit for fit in fits(config, request, 24)}
    beside = {fit.way.name: fit for fit in fits(config, request._replace(server_share=0.4), 24)}
    nf4, before = beside["LoRA, nf4"], alone["LoRA, nf4"]
    held = nf4.estimate.stays
    assert nf4.estimate.phases["rollout"] == pytest.approx(held["policy"] + held["images"] + 9.6 * GB)
    updates = [found["LoRA"].estimate.phases["update"] for found in (alone, beside)]
    assert updates[0] - updates[1] > 10 * GB  # the copy to decode with is the server's
    assert nf4.batch is not None
    assert before.batch is not None
    assert nf4.batch > before.batch > 0
    assert beside["LoRA"].batch == 0


def test_extra_rollouts_need_memory_for_their_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED["Qwen2.5-VL-3B"]))
    batches = []
    for extra in (0, 9):
        words = [f"--checkpoint={tmp_path}", "--gpu_memory=24", "--image_tokens=1000", f"--max_extra_rollouts={extra}"]
        assert main(["fits", *words]) == 0
        rows = {line[:20].strip(): line.split() for line in capsys.readouterr().out.splitlines()}
        batches.append(int(rows["LoRA, nf4"][-1]))
    per_prompt = 9 * 1000 * (4 * 1176 * 4 + 2048 * 2)  # pixels in float32 and features in bfloat16 of nine prompts
    assert batches[1] * per_prompt < 24e9
    assert batches[1] < 0.8 * batches[0]


CARDS = {"t4": ("Qwen2.5-VL-3B", 16), "24gb": ("Qwen3-VL-8B", 24), "80gb": ("Qwen3-VL-8B", 80)}


@pytest.mark.parametrize("card", CARDS)
def test_a_card_holds_what_its_config_trains(card: str) -> None:
    """The largest image has the config's `max_pixels`; a text of 200 tokens and completions of 256 stand beside it."""
    name, gpu = CARDS[card]
    content = yaml.safe_load((CONFIGS / "gpu" / f"{card}.yaml").read_text())
    model, data = (content[part]["init_args"] for part in ("model", "data"))
    policy = model["policy"]
    assert policy["checkpoint"] == f"Qwen/{name}-Instruct"
    config = AutoConfig.for_model(**PUBLISHED[name])
    images = image_tokens(config, policy["max_pixels"])
    assert images is not None
    assert images >= 1000
    way = BY_NAME["LoRA, nf4" if policy.get("quantize") else "LoRA"]
    work = Workload(
        prompts=data["batch_size"],
        evaluated=data["eval_batch_size"],
        sampled=8,
        generations=8,
        prompt_tokens=images + 200,
        image_tokens=images,
        completion_tokens=256,
        micro_batch=model["max_tokens_per_micro_batch"],
    )
    stored = weights(way, count(config), policy["lora"]["r"])
    shape = model_shape(config, getattr(torch, policy["dtype"]))
    phases = Phases(stored, shape, work, lora=True, checkpointing=policy["gradient_checkpointing"])
    needed = (phases.estimate().peak + RESERVE) / GB
    assert 0.4 * gpu < needed < 0.9 * gpu  # a margin of a tenth, and not the config of a smaller card


PARAMETERS = {"Qwen2-VL-2B": 2.209, "Qwen2-VL-7B": 8.291, "Qwen2.5-VL-3B": 3.755, "Qwen2.5-VL-7B": 8.292}
PARAMETERS |= {"Gemma-3-4B": 4.300, "InternVL3-2B": 2.089, "InternVL3-8B": 7.944}
PARAMETERS |= {"Qwen3-VL-2B": 2.127, "Qwen3-VL-4B": 4.438, "Qwen3-VL-8B": 8.767}


@pytest.mark.parametrize("name", PARAMETERS)
def test_configs_have_the_published_numbers_of_parameters(name: str) -> None:
    config = PUBLISHED[name]
    assert count(AutoConfig.for_model(**config)).all / 1e9 == pytest.approx(PARAMETERS[name], abs=0.0006)


def rows_of_the_docs() -> list[list[str]]:
    """Return the cells of the table in docs/gpus.md, without its first two lines."""
    text = (ROOT / "docs" / "gpus.md").read_text().split("\n## Before you download\n")[1]
    return [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")][1:]


DOCUMENTED = rows_of_the_docs()


@pytest.mark.parametrize("model", dict.fromkeys(model for model, *_ in DOCUMENTED))
def test_the_table_of_the_docs_is_what_fits_computes(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = AutoConfig.for_model(**PUBLISHED[model.replace(" ", "-")])
    sizes = count(config)
    monkeypatch.setattr("vrft.doctor.fits.count", lambda *_: sizes)  # it doesn't depend on the GPU
    images = config.mm_tokens_per_image if model.startswith("Gemma") else 1000
    request = Request(images, 200, 256, 8, 4096, 16, True)
    found = [{fit.way.name: fit for fit in fits(config, request, gpu)} for gpu in (16, 24, 48, 80, 141)]
    for _, way, *cells in (row for row in DOCUMENTED if row[0] == model):
        needed = (found[0][way].estimate.peak + RESERVE) / GB
        assert cells == [f"{needed:.1f}", *(str(fit[way].batch or "-") for fit in found)]


def test_recurrent_layers_keep_states_instead_of_keys() -> None:
    text = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2}
    text |= {"head_dim": 16, "intermediate_size": 96, "vocab_size": 100}
    text |= {"layer_types": ["linear_attention"] * 3 + ["full_attention"], "linear_num_value_heads": 4}
    text |= {"linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 16}
    shape = model_shape(AutoConfig.for_model("qwen3_5", text_config=text), torch.bfloat16)
    assert shape.key_values == 2 * 2 * 16  # one layer
    assert shape.states == 3 * 4 * 8 * 16 * 4  # three layers, in float32


def test_image_tokens_follow_patches() -> None:
    assert image_tokens(AutoConfig.from_pretrained(BUILT_IN / "tiny-detection"), 28 * 28 * 9) is not None
    assert image_tokens(AutoConfig.for_model(**PUBLISHED["Qwen3-VL-8B"]), 32 * 32 * 50) == 50


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--checkpoint=nowhere/to/be/found"], "fits: --checkpoint"),
        (["--checkpoint=tiny-detection", "--gpu_memory=-1"], "--gpu_memory: expected a number above 0, got -1"),
        (["--checkpoint=tiny-detection", "--num_generations=0"], "--num_generations: expected a number above 0"),
        (["--checkpoint=tiny-detection", "--server_share=0.4"], "--server_share: expected a part of --gpu_memory"),
        (["--checkpoint=tiny-detection", "--modules_to_save", "head"], "modules_to_save: lm_head shares a weight with"),
        (
            ["--checkpoint=tiny-detection", "--max_extra_rollouts=-1"],
            "--max_extra_rollouts: expected at least 0, got -1",
        ),
    ],
)
def test_wrong_words_are_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fits", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
