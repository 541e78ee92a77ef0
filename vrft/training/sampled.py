"""Several sampled answers to held-out or training questions, outside of training steps."""

from __future__ import annotations

from typing import NamedTuple

from vrft.rollout import Sampling, SamplingKey
from vrft.training.module import VisionModule
from vrft.training.progress_bar import phase
from vrft.training.rollouts import Generation
from vrft.training.scoring import parse_completions
from vrft.types import Answer, PromptBatch, Rollout, Sample


class Sampled(NamedTuple):
    """The k answers to each of P prompts, the samples to score them by, and the completions, N = P * k rows."""

    answers: list[Answer]
    samples: list[Sample]
    rollout: Rollout
    prompts: PromptBatch


def sample_answers(module: VisionModule, batch: PromptBatch, count: int, sampling: Sampling) -> Sampled:
    """Return `count` sampled answers to each of P prompts with consecutive indices.

    The random numbers of a question depend on the seed, the step and the sample's index alone, so any number of ranks
    and any batch size samples the same answers.
    """
    length = module.max_completion_length
    key = SamplingKey(module.seed, int(module.steps_done), first=batch.samples[0].index)
    prepared = module.policy.prepare(batch)
    with phase(module.trainer, "sampling", length) as advance:
        rollout = module.rollouts.generate(prepared, Generation(count, length, sampling, key), advance)
    answers, samples = parse_completions(module.task, rollout, batch)
    return Sampled(answers, samples, rollout, prepared)
