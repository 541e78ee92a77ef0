"""A run whose prompts have examples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen2VLProcessor

from tests.conftest import Command
from tests.helpers import CSV_ONLY
from tests.training.test_skipped_steps import logged
from vrft.__main__ import main
from vrft.policy import Policy
from vrft.policy.checkpoint import find_checkpoint
from vrft.policy.fused import own_forwards
from vrft.policy.reading import Reader
from vrft.policy.repeated import naive_logits
from vrft.training.cross_entropy import CrossEntropy, Targets


def test_all_prompts_of_a_rollout_begin_with_the_same_examples(quick_fit: Command, tmp_path: Path) -> None:
    more = ["--data.examples=2", "--data.batch_size=3", "--transcripts.every_n_rollouts=1", CSV_ONLY]
    assert main(quick_fit(*more)) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "transcripts.jsonl").read_text().splitlines()]
    starts: dict[int, set[str]] = {}
    for line in lines:
        assert line["prompt"].count("</answer>") == 2
        start, _, _ = line["prompt"].rpartition("</answer>")
        starts.setdefault(line["rollout"], set()).add(start)
        assert line["question"] == f"Detect {line['query']}"
    assert [len(found) for found in starts.values()] == [1, 1]
    assert starts[1] != starts[2]
    evaluation = min((tmp_path / "run" / "evaluation").glob("*/answers.jsonl"))
    held_out = [json.loads(line)["prompt"] for line in evaluation.read_text().splitlines()]
    assert {prompt.count("</answer>") for prompt in held_out if prompt} == {2}


def test_supervised_fine_tuning_learns_the_answer_to_the_question_alone(
    quick_fit: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first loss is that of the model's own forward on whole prompts, whose examples have answers without loss."""
    steps: list[Targets] = []
    targets = CrossEntropy.targets
    monkeypatch.setattr(CrossEntropy, "targets", lambda self, batch: steps.append(targets(self, batch)) or steps[-1])
    more = ["--data.examples=2", "--data.batch_size=3", "--trainer.max_steps=1", "--trainer.limit_val_batches=0"]
    assert main(["fit", "--config", "quickstart_sft", *quick_fit(*more, CSV_ONLY)[3:]]) == 0
    (step,) = steps
    assert len({id(prompt["start"]) for prompt in step.batch.inputs}) == 1
    policy = Policy("tiny-detection", dtype="float32")
    policy.load(keep_reference=False)
    total = torch.zeros(())
    for prompt, ids, mask in zip(step.batch.inputs, step.ids, step.mask, strict=True):
        assert policy.tokenizer.decode(prompt["input_ids"][0]).count("</answer>") == 2
        row = ids[mask.bool()]
        with torch.no_grad(), own_forwards(policy.base):
            log_p = naive_logits(policy.base, prompt, row).index_fill(-1, policy.banned_ids, -torch.inf).log_softmax(-1)
        total -= log_p.gather(-1, row[:, None]).sum()
    assert logged(tmp_path / "run", "train/loss") == [pytest.approx(float(total / step.mask.sum()), rel=1e-5)]


def test_a_family_that_takes_one_image_is_refused_before_its_weights_are_read(
    quick_fit: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = Qwen2VLProcessor.__call__

    def one_image(self: Any, *args: Any, images: Any, **more: Any) -> Any:
        if len(images[0]) > 1:
            raise ValueError("expected one image\nfor each text")
        return encode(self, *args, images=images, **more)

    monkeypatch.setattr(Qwen2VLProcessor, "__call__", one_image)
    monkeypatch.setattr(Reader, "read", lambda *_: pytest.fail("the weights were read"))
    assert main(quick_fit("--data.examples=2")) == 2
    assert capsys.readouterr().err == (
        f"vrft: model.policy.checkpoint: {find_checkpoint('tiny-detection')}: Qwen2VLProcessor takes a prompt with one "
        "image, and not one with 3, as the data has with data.examples=2: expected one image for each text\n"
    )


def test_examples_by_batch_need_prompts_that_are_asked_once(
    quick_fit: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(quick_fit("--data.examples=1", "--model.difficulty={reward: iou}")) == 2
    assert "vrft: data.examples: expected 0 with model.difficulty" in capsys.readouterr().err
