"""Answers after limited thinking, against transformers' own generation."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from vrft.callbacks.thinking_budget import ThinkingBudget
from vrft.data.datasets.digits import RenderedDigits
from vrft.errors import ConfigurationError
from vrft.evaluators import AccuracyEvaluator
from vrft.policy import Policy
from vrft.rollout import Sampling, SamplingKey, TransformersEngine
from vrft.tasks import ClassificationTask
from vrft.training.fresh_prompts import prepared_prompts
from vrft.training.rollouts import Generation
from vrft.training.scoring import parse_completions
from vrft.training.thinking import ENDING, answers_within, thinking_tokens

TASK = ClassificationTask("Classify the digit")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def module() -> Any:
    policy = Policy("tiny-digits", dtype="float32")
    policy.load(keep_reference=False)
    engine = TransformersEngine()

    def generate(batch: Any, generation: Generation, on_token: Any) -> Any:
        return engine.generate(
            policy,
            batch,
            generation.num_generations,
            max_completion_length=generation.max_completion_length,
            sampling=generation.sampling,
            key=generation.key,
            on_token=on_token,
        )

    return SimpleNamespace(
        policy=policy.eval(),
        task=TASK,
        encoder=policy.encoder(TASK),
        device=CPU,
        max_completion_length=12,
        rollouts=SimpleNamespace(generate=generate),
        sampling_key=lambda: SamplingKey(0, 0),
        trainer=Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False),
    )


def plain(module: Any, sample: Any, begun: list[int]) -> str:
    """Return the completion after its first tokens, by transformers' greedy search."""
    policy = module.policy
    chat = TASK.messages(sample, module.encoder.frame(sample.image))
    text = policy.processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    inputs = policy.processor(text=[text], images=[sample.image], return_tensors="pt")
    more = torch.tensor([begun], dtype=torch.long)
    ids = torch.cat([inputs.pop("input_ids"), more], 1)
    settings = {"do_sample": False, "max_new_tokens": 12, "eos_token_id": policy.stop_ids.tolist(), "pad_token_id": 0}
    with torch.no_grad():
        found = policy.base.generate(
            input_ids=ids,
            pixel_values=inputs["pixel_values"],
            image_grid_thw=inputs["image_grid_thw"],
            mm_token_type_ids=torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(more)], 1),
            attention_mask=torch.ones_like(ids),
            bad_words_ids=[[i] for i in policy.banned_ids.tolist()],
            **settings,
        )[0, ids.shape[1] :]
    kept = [i for i in [*begun, *found.tolist()] if i not in policy.stop_ids.tolist()]
    return str(policy.tokenizer.decode(kept))


def test_thinking_is_cut_closed_and_answered_as_by_plain_generation(module: Any) -> None:
    samples = [RenderedDigits(3, seed=5)[i] for i in range(3)]
    batch = module.encoder(samples)
    generation = Generation(1, 12, Sampling(greedy=True), SamplingKey(0, 0))
    rollout = module.rollouts.generate(prepared_prompts(module.policy, batch, CPU), generation, lambda *_: None)
    greedy, _ = parse_completions(TASK, rollout, batch)
    assert [answer.text for answer in greedy] == [plain(module, sample, []) for sample in samples]
    ending = module.policy.tokenizer(ENDING)["input_ids"]
    lengths = [thinking_tokens(module, answer) for answer in greedy]
    assert all(
        module.policy.tokenizer.decode(answer.token_ids[:length]) + "</think>" in answer.text
        for answer, length in zip(greedy, lengths, strict=True)
    )
    for budget in (0, 2, min(lengths), max(lengths), 50):
        for cut, answer, sample, length in zip(
            answers_within(module, batch, greedy, budget), greedy, samples, lengths, strict=True
        ):
            assert cut.tokens == min(budget, length)
            if length <= budget:
                assert cut.answer is answer
            else:
                assert cut.answer.text == plain(module, sample, [*answer.token_ids[:budget], *ending])
    assert answers_within(module, batch, greedy, 0)[0].answer.text.startswith(ENDING)


def greedy_answers(module: Any, count: int) -> tuple[Any, Any]:
    """Return prompts and answers that think for three tokens."""
    samples = [RenderedDigits(count, seed=5)[i] for i in range(count)]
    answer = TASK.parse("<think>one</think>", samples[0], SimpleNamespace())  # type: ignore[arg-type]
    answer.token_ids = tuple(module.policy.tokenizer("<think>one</think>")["input_ids"])
    return module.encoder(samples), [answer] * count


def test_a_rank_without_cuts_generates_if_another_has_some(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    generate, calls = module.rollouts.generate, []
    monkeypatch.setattr(module.rollouts, "generate", lambda *given: calls.append(given) or generate(*given))
    batch, greedy = greedy_answers(module, 2)
    expected = answers_within(module, batch, greedy, 50)
    assert not calls
    monkeypatch.setattr(module.trainer.strategy, "reduce_boolean_decision", lambda decision, all: True)
    found = answers_within(module, batch, greedy, 50)
    assert found == expected
    assert [cut.answer for cut in found] == greedy
    assert len(calls) == 1


def test_thinking_that_leaves_no_room_for_an_answer_is_refused(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, greedy = greedy_answers(module, 1)
    room = batch.inputs[0]["input_ids"].shape[1] + module.max_completion_length
    monkeypatch.setattr(Policy, "max_positions", property(lambda _: room))
    with pytest.raises(ConfigurationError, match=f"12 of completion .* are more than the model's {room}"):
        answers_within(module, batch, greedy, 0)


def test_thinking_that_never_ends_has_all_tokens(module: Any) -> None:
    ids = module.policy.tokenizer("<think>This is the digit")["input_ids"]
    answer = TASK.parse("<think>This is the digit", RenderedDigits(1, 0)[0], SimpleNamespace())  # type: ignore[arg-type]
    answer.token_ids = tuple(ids)
    assert thinking_tokens(module, answer) == len(ids)


@pytest.mark.parametrize("budgets", [[], [-1, 4]])
def test_budgets_without_a_meaning_are_refused(budgets: list[int]) -> None:
    with pytest.raises(ConfigurationError, match="budgets: expected numbers of tokens, at least 0"):
        ThinkingBudget(budgets, AccuracyEvaluator())
