"""Generate answers after a limited number of thinking tokens by truncating the thinking (T1, arXiv 2501.11651)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vrft.policy.plain_text import plain_text
from vrft.policy.prompts import TOKEN_TYPE_KEYS, Prompt
from vrft.rollout import Sampling
from vrft.training.checks import check_prompt_lengths
from vrft.training.fresh_prompts import prepared_prompts
from vrft.training.module import VisionModule
from vrft.training.progress_bar import phase
from vrft.training.rollouts import Generation
from vrft.types import Answer, PromptBatch

ENDING = "</think><answer>"
"""Text that ends truncated thinking and begins the answer."""


class Cut(NamedTuple):
    """An answer after limited thinking, and its number of thinking tokens."""

    answer: Answer
    tokens: int


def answers_within(module: VisionModule, batch: PromptBatch, greedy: Sequence[Answer], budget: int) -> list[Cut]:
    """Return an answer to each of P prompts after at most `budget` tokens of thinking.

    If the thinking ends within the budget, the greedy answer is kept. Otherwise the thinking is truncated after
    `budget` tokens and closed, and the policy continues with the answer, greedily.

    Args:
        module: the module that answers.
        batch: P prompts.
        greedy: their greedy answers, with token ids.
        budget: maximum number of tokens from the beginning of the completion to the end of the thinking.

    Raises:
        ConfigurationError: the model's context has no room for an answer after the thinking.
    """
    lengths = [thinking_tokens(module, answer) for answer in greedy]
    found = [Cut(answer, length) for answer, length in zip(greedy, lengths, strict=True)]
    cut = [p for p, length in enumerate(lengths) if length > budget]
    if not module.trainer.strategy.reduce_boolean_decision(bool(cut), all=False):
        return found
    cut = cut or [0]  # ranks may share weights, so all ranks have to generate
    ending = plain_text(module.policy.processor).ids([ENDING])[0]
    starts = [[*(greedy[p].token_ids or ())[:budget], *ending] for p in cut]
    chosen = batch.select(cut)
    prompts = module.encoder(chosen.samples)
    inputs = [continued(prompt, ids) for prompt, ids in zip(prompts.inputs, starts, strict=True)]
    begun = PromptBatch(prompts.samples, prompts.frames, inputs)
    length = module.max_completion_length
    check_prompt_lengths(begun, length, module.policy.max_positions)
    prepared = prepared_prompts(module.policy, begun, module.device)
    generation = Generation(1, length, Sampling(greedy=True), module.sampling_key())
    with phase(module.trainer, f"answers after {budget} tokens", length) as advance:
        rollout = module.rollouts.generate(prepared, generation, advance)
    for p, ids, text, sample, frame in zip(cut, starts, rollout.texts, chosen.samples, chosen.frames, strict=True):
        if lengths[p] > budget:
            first = torch.tensor([ids])
            thought = module.policy.decode(first, torch.ones_like(first))[0]
            found[p] = Cut(module.task.parse(thought + text, sample, frame), budget)
    return found


def thinking_tokens(module: VisionModule, answer: Answer) -> int:
    """Return the number of tokens of a completion before the end of its thinking, or all if the thinking never ends."""
    ids = torch.tensor([answer.token_ids or ()], dtype=torch.long)
    low, high = 0, ids.shape[1]
    while low < high:  # find the shortest prefix that contains the end of thinking
        middle = (low + high) // 2
        text = module.policy.decode(ids[:, :middle], torch.ones_like(ids[:, :middle]))[0]
        low, high = (low, middle) if "</think>" in text else (middle + 1, high)
    ended = "</think>" in answer.text
    return max(0, low - len(plain_text(module.policy.processor).ids(["</think>"])[0])) if ended else ids.shape[1]


def continued(prompt: Prompt, ids: Sequence[int]) -> Prompt:
    """Append the first tokens of a completion to an encoded prompt."""
    more = torch.tensor([ids], dtype=torch.long)

    def longer(key: str, value: Tensor) -> Tensor:
        if key == "input_ids":
            return torch.cat([value, more.to(value)], 1)
        fill = torch.ones_like(more) if key == "attention_mask" else torch.zeros_like(more)
        return torch.cat([value, fill.to(value)], 1)

    token_keys = ("input_ids", "attention_mask", *TOKEN_TYPE_KEYS)
    return {key: longer(key, value) if key in token_keys else value for key, value in prompt.items()}
