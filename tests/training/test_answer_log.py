"""An interrupted test resumes where it stopped."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from PIL import Image

from tests.helpers import CSV_ONLY
from vrft.__main__ import main
from vrft.rollout import TransformersEngine
from vrft.training.answer_log import AnswerLog
from vrft.types import Answer, PromptBatch, Rollout, Sample

ASKED: list[int] = []
"""Indices of the samples for which the engine was called."""


class Counting(TransformersEngine):
    """Records the samples of each call in `ASKED`."""

    def generate(self, policy: Any, batch: PromptBatch, *args: Any, **kwargs: Any) -> Rollout:
        ASKED.extend(sample.index for sample in batch.samples)
        return super().generate(policy, batch, *args, **kwargs)


class Stops(Callback):
    """Ends a test after its second batch."""

    def on_test_batch_end(self, *arguments: Any) -> None:
        if arguments[4] == 1:
            raise RuntimeError("the power is gone")


def test_an_interrupted_test_resumes_and_a_complete_one_starts_over(
    quick_fit: Callable[..., list[str]], tmp_path: Path
) -> None:
    common = [CSV_ONLY, f"--model.engine={__name__}.Counting", "--data.eval_batch_size=3"]
    stop = f"--trainer.callbacks+={__name__}.Stops"
    evaluator = "--trainer.callbacks.confidence=logprob"
    assert main(["test", *quick_fit(*common, evaluator, stop)[1:]]) == 1
    assert len(ASKED) == 6
    log = tmp_path / "run" / "evaluation" / "answers-base" / "answers-0.jsonl"
    log.write_bytes(log.read_bytes()[:-20] + b"\xed")  # a partial last line that is not UTF-8
    ASKED.clear()
    assert main(["test", *quick_fit(*common, evaluator)[1:]]) == 0
    everything = json.loads((tmp_path / "run" / "evaluation" / "test-0" / "coco.meta.json").read_text())
    assert len(ASKED) == everything["prompts"] - 5
    ASKED.clear()
    assert main(["test", *quick_fit(*common, evaluator)[1:]]) == 0
    assert len(ASKED) == everything["prompts"]
    again = json.loads((tmp_path / "run" / "evaluation" / "test-0" / "coco.meta.json").read_text())
    assert again == everything


def test_answers_to_other_prompts_are_not_reused(quick_fit: Callable[..., list[str]]) -> None:
    common = [CSV_ONLY, f"--model.engine={__name__}.Counting", "--data.eval_batch_size=3"]
    assert main(["test", *quick_fit(*common, f"--trainer.callbacks+={__name__}.Stops")[1:]]) == 1
    ASKED.clear()
    assert main(["test", *quick_fit(*common, "--model.policy.max_pixels=3136")[1:]]) == 0
    assert min(ASKED) == 0


def test_answers_that_were_given_with_other_examples_are_not_reused(tmp_path: Path) -> None:
    image = Image.new("RGB", (2, 2))
    example = Sample(-1, (image,), "b.png", "cat", "cat")
    alone = Sample(0, (image,), "a.png", "dog", None)
    answer = Answer("<answer>dog</answer>", "", "dog", True, token_ids=())
    AnswerLog(tmp_path, 0, {}).add(replace(alone, examples=(example,)), answer)
    log = AnswerLog(tmp_path, 0, {})
    assert log.recall(alone) is None
    assert log.recall(replace(alone, examples=(replace(example, image_id="c.png"),))) is None
    assert log.recall(replace(alone, examples=(example,))) is not None
