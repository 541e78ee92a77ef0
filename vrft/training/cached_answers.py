"""Answer the prompts of a resumed test, from the log of the interrupted test where possible."""

from __future__ import annotations

from collections.abc import Callable

from lightning.pytorch.strategies import Strategy

from vrft.tasks import Task
from vrft.training.answer_log import AnswerLog
from vrft.types import Answer, PromptBatch


def cached_answers(
    log: AnswerLog,
    task: Task,
    batch: PromptBatch,
    predict: Callable[[PromptBatch, int], list[Answer]],
    strategy: Strategy,
) -> list[Answer]:
    """Return an answer to each of P prompts, and add new answers to the log.

    Args:
        log: answers of the interrupted test.
        task: parses logged completions.
        batch: P prompts.
        predict: answers prompts that the log lacks.
        strategy: strategy of the trainer. Ranks may share weights, so if one rank has to predict, all do.
    """
    answers: dict[int, Answer] = {}
    for p, (sample, frame) in enumerate(zip(batch.samples, batch.frames, strict=True)):
        if (entry := log.recall(sample)) is not None:
            answers[p] = task.parse(entry["completion"], sample, frame)
            answers[p].token_ids = tuple(entry["token_ids"])
            answers[p].tokens = tuple((piece, log_prob) for piece, log_prob in entry["tokens"])
    missing = [p for p in range(len(batch.samples)) if p not in answers]
    if strategy.reduce_boolean_decision(bool(missing), all=False):
        missing = missing or [0]
        for p, answer in zip(missing, predict(batch.select(missing), 0), strict=True):
            answers[p] = answer
            log.add(batch.samples[p], answer)
    return [answers[p] for p in range(len(batch.samples))]
