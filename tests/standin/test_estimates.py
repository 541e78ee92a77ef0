"""The doctor's estimate of each phase is near the stand-in's peak."""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image

from tests.helpers import ROOT
from tests.standin import four_bits  # noqa: F401
from tests.standin.device import gpu, phase
from vrft.doctor.memory import copied_weights, stored_weights, workload
from vrft.doctor.phases import Phases, Workload
from vrft.doctor.shape import model_shape
from vrft.policy import LoRA, Policy, head
from vrft.policy.decoding_weights import DecodingWeights
from vrft.rollout import Sampling, SamplingKey, TransformersEngine
from vrft.tasks import DetectionTask
from vrft.training.optimization import use_fused_kernels
from vrft.types import PromptBatch, Sample

Sizes = dict[str, Any]


class Case(NamedTuple):
    """A model of some sizes, the work of a step, and how it trains."""

    text: Sizes
    vision: Sizes
    vocabulary: int | None
    side: int  # of an image, in pixels
    group: int
    tokens: int  # of a completion
    prompts: int
    settings: Sizes
    sampling: Sampling = Sampling(temperature=2.0)

    @property
    def rows(self) -> int:
        return self.prompts * self.group


def text(hidden: int, layers: int, heads: int, mlp: int) -> Sizes:
    sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "intermediate_size": mlp}
    return sizes | {"num_attention_heads": heads}


def tower(width: int, depth: int, mlp: int) -> Sizes:
    return {"width": width, "depth": depth, "num_heads": 4, "intermediate_size": mlp, "full": [1]}


WIDE = (text(256, 4, 4, 688), tower(128, 2, 344), None, 168, 4, 24, 2)
DEEP = (text(128, 12, 4, 512), tower(64, 3, 176), None, 224, 3, 16, 2)
WORDY = (text(192, 3, 6, 320), tower(96, 2, 256), 16000, 112, 4, 12, 3)
CAPPED = (WORDY[0] | {"final_logit_softcapping": 5.0}, *WORDY[1:])
THIN = (text(256, 16, 4, 64), tower(32, 1, 32), None, 280, 4, 8, 2)
"""Sums of the layers' outputs take most of an update: in bfloat16 they are float32, as embeddings are that train."""
MIXED = (text(128, 2, 4, 256), tower(64, 2, 176), None, 168, 4, 24, 2)
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 256}
"""The gradients of a layer's experts are larger than its activations."""
LORA = {"lora": LoRA(r=4)}
CASES = {
    "wide, full": Case(*WIDE, settings={}),
    "wide, lora, checkpointed": Case(*WIDE, settings=LORA | {"gradient_checkpointing": True}),
    "deep, nf4, checkpointed": Case(*DEEP, settings=LORA | {"quantize": "nf4", "gradient_checkpointing": True}),
    "deep, full, checkpointed": Case(*DEEP, settings={"gradient_checkpointing": True}),
    "thin, full, checkpointed": Case(*THIN, settings={"gradient_checkpointing": True}),
    "wide, full, bfloat16": Case(*WIDE, settings={"trained_dtype": "bfloat16"}),
    "mixture, full, checkpointed": Case(MIXED[0] | EXPERTS, *MIXED[1:], settings={"gradient_checkpointing": True}),
    "wordy, lora": Case(*WORDY, settings=LORA),
    "wordy, lora, top-p": Case(*WORDY, settings=LORA, sampling=Sampling(top_p=0.9))._replace(group=8),
    "capped, lora, float32, checkpointed": Case(
        *CAPPED, settings=LORA | {"dtype": "float32", "gradient_checkpointing": True}
    ),
    "wordy, full, frozen tower, float32": Case(*WORDY, settings={"freeze_vision": True, "dtype": "float32"}),
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a function of benchmarks/build_checkpoint.py that builds one tokenizer for all checkpoints."""
    build = runpy.run_path(str(ROOT / "benchmarks" / "build_checkpoint.py"))
    folder = tmp_path_factory.mktemp("tokenizer")
    made = build["build_tokenizer"](folder)

    def copied(target: Path) -> Any:
        shutil.copytree(folder, target, dirs_exist_ok=True)
        return made

    build["main"].__globals__["build_tokenizer"] = copied
    return build


def checkpoint(build: Any, case: Case, folder: Path) -> str:
    preset = {"text": case.text, "vision": case.vision, "vocabulary": case.vocabulary}
    build["PRESETS"]["case"] = preset
    arch = "qwen3_vl_moe" if "num_experts" in case.text else "qwen2_5_vl"
    dtype = case.settings.get("trained_dtype", "float32")
    build["main"]([str(folder), "--preset", "case", "--arch", arch, "--dtype", dtype])
    return str(folder)


def on_gpu(batch: PromptBatch) -> PromptBatch:
    inputs = [{k: v.cuda() if hasattr(v, "cuda") else v for k, v in prompt.items()} for prompt in batch.inputs]
    return PromptBatch(batch.samples, batch.frames, inputs)


def two_steps(case: Case, policy: Policy) -> tuple[dict[str, float], PromptBatch]:
    """Train two steps and evaluate after each; return the peaks of the phases of the second, and the prompts."""
    optimizer = torch.optim.AdamW([p for p in policy.model.parameters() if p.requires_grad], lr=1e-3)
    use_fused_kernels(optimizer)
    samples = [Sample(i, (Image.new("RGB", (case.side,) * 2, (i, i, i)),), i, "count", "") for i in range(case.prompts)]
    batch = policy.compare_prompts(policy.encoder(DetectionTask("Detect {query}"))(samples))
    batch = on_gpu(batch)
    ids = torch.full((case.rows, case.tokens), 100, device="cuda")
    engine = TransformersEngine()

    def sample(prepared: PromptBatch, group: int, sampling: Sampling) -> None:
        settings: Sizes = {"max_completion_length": case.tokens, "sampling": sampling, "key": SamplingKey(3, 0)}
        engine.generate(policy, prepared, group, on_token=lambda *_: None, **settings)

    for _ in range(2):
        gpu.reset()
        with phase("rollout"):
            prepared = policy.prepare(batch)
            sample(prepared, case.group, case.sampling)
        groups = [(prepared.inputs[p : p + 1], ids[p * case.group :][: case.group]) for p in range(case.prompts)]
        with phase("reference"), torch.no_grad():
            for prompt, rows in groups:
                policy(prompt, rows, torch.ones_like(rows), 1.0, reference=True)
        with phase("update"):
            for prompt, rows in groups:
                policy(prompt, rows, torch.ones_like(rows), 1.0)[0].sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        del prepared, groups, prompt
        with phase("evaluation"):
            sample(policy.prepare(batch), 1, Sampling(greedy=True))
    return {name: count["peak"] for name, count in gpu.counts().items()}, batch


@pytest.mark.parametrize("name", CASES)
def test_each_phase_is_within_15_percent(
    name: str, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "CAPPED", (*head.CAPPED, "qwen2_5_vl"))
    case = CASES[name]
    before, settings = gpu.memory(), {"dtype": "bfloat16", "freeze_vision": "lora" in case.settings} | case.settings
    policy = Policy(checkpoint(tokenizer, case, tmp_path), **settings)
    gpu.reset()
    with phase("load"), torch.device("cuda"):
        policy.load(keep_reference=True)
    loaded = gpu.counts()["load"]["peak"]
    policy.train()
    peaks, batch = two_steps(case, policy)
    module: Any = SimpleNamespace(policy=policy, group_size=case.group, num_samples=case.group, batches_per_step=1)
    module.max_completion_length, module.sampling = case.tokens, case.sampling
    length = batch.inputs[0]["input_ids"].shape[1]
    module.optimization = SimpleNamespace(max_tokens_per_micro_batch=length + case.group * case.tokens)
    data: Any = SimpleNamespace(batch_size=case.prompts, eval_batch_size=case.prompts)
    phases = Phases(
        stored_weights(policy, optimizer=2 * policy.trained_dtype.itemsize),
        model_shape(policy.base.config, policy.dtype),
        workload(module, data, batch),
        lora=policy.lora is not None,
        checkpointing=policy.reader.gradient_checkpointing,
    )
    estimate = phases.estimate()
    measured = {name: peaks.get(name, loaded) - before for name in estimate.phases}
    assert estimate.phases == pytest.approx(measured, rel=0.15)
    stays = sum(estimate.stays.values())  # with gradients, beside which activations have a bound of their own
    assert estimate.phases["update"] - stays == pytest.approx(measured["update"] - stays, rel=0.15)


@pytest.mark.parametrize("lora", [None, LoRA(r=4)], ids=["trained tower", "frozen tower"])
def test_images_of_all_rollouts_of_a_step_are_counted(lora: LoRA | None) -> None:
    prompts, rollouts = 2, 4
    policy = Policy("tiny-detection", lora, freeze_vision=lora is not None)
    with torch.device("cuda"):
        policy.load(keep_reference=False)
    count = prompts * rollouts
    samples = [Sample(i, (Image.new("RGB", (336, 336), (i, i, i)),), i, "count", "") for i in range(count)]
    batch = policy.encoder(DetectionTask("Detect {query}"))(samples)
    module: Any = SimpleNamespace(policy=policy, group_size=1, num_samples=1, batches_per_step=rollouts)
    module.max_completion_length, module.optimization = 1, SimpleNamespace(max_tokens_per_micro_batch=1)
    module.sampling = Sampling()
    load = workload(module, SimpleNamespace(batch_size=prompts, eval_batch_size=1), batch)  # type: ignore[arg-type]
    stored, shape = stored_weights(policy, optimizer=8), model_shape(policy.base.config, policy.dtype)
    phases = Phases(stored, shape, load, lora=lora is not None, checkpointing=False)
    before = gpu.memory()
    moved = on_gpu(batch)
    kept = [policy.prepare(moved.select(range(first, first + prompts))) for first in range(0, count, prompts)]
    assert phases.images() + phases.waiting_features() == pytest.approx(gpu.memory() - before, rel=0.15)
    without = Phases(stored, shape, load._replace(rollouts=1), lora=lora is not None, checkpointing=False)
    more = [a.estimate().phases["rollout"] for a in (phases, without)]
    assert more[0] - more[1] == pytest.approx((gpu.memory() - before) * (rollouts - 1) / rollouts, rel=0.15)
    assert len(kept) == rollouts


@pytest.mark.parametrize(
    "settings",
    [
        {"lora": LoRA(r=64)},
        {"lora": LoRA(r=64), "quantize": "nf4"},
        {"lora": LoRA(r=64, target_modules=["q_proj", "v_proj"])},
        {"trained_dtype": "bfloat16"},
    ],
    ids=["lora", "nf4", "lora of q and v", "full, bfloat16"],
)
def test_rollouts_copy_the_weights_that_are_counted(settings: Sizes, tokenizer: Any, tmp_path: Path) -> None:
    checkpoint(tokenizer, CASES["deep, nf4, checkpointed"], tmp_path)
    policy = Policy(str(tmp_path), dtype="bfloat16", **settings)
    with torch.device("cuda"):
        policy.load(keep_reference=False)
    before = gpu.memory()
    weights = DecodingWeights(policy.base, policy.dtype, policy.device)
    assert 2 * copied_weights(policy.base, policy.dtype) == pytest.approx(gpu.memory() - before, rel=0.02)
    assert weights.copies


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(10_000, (3, 12, 3 * 140)), (300, (2, 8, 280)), (140, (1, 4, 140)), (90, (1, 2, 90)), (7, (1, 1, 65))],
)
def test_micro_batches_have_whole_groups_if_they_can(limit: int, expected: tuple[int, int, int]) -> None:
    load = Workload(3, 8, 9, 4, 40, 30, 25, limit)
    assert load.largest_part() == expected


def test_sizes_are_read_by_families_own_names() -> None:
    from transformers import AutoConfig

    gemma = {"model_type": "gemma3", "mm_tokens_per_image": 256, "text_config": {"model_type": "gemma3_text"}}
    gemma["vision_config"] = {"image_size": 896, "patch_size": 14, "model_type": "siglip_vision_model"}
    found = model_shape(AutoConfig.for_model(**json.loads(json.dumps(gemma))), torch.bfloat16)
    assert (found.tower.patches, found.tower.is_gated, found.repeats_keys) == (16, False, True)
