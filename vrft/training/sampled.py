"""Sample and score several answers to each question outside of training steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from vrft.errors import ConfigurationError
from vrft.rollout import Sampling, SamplingKey
from vrft.training.module import VisionModule
from vrft.training.progress_bar import phase
from vrft.training.rollouts import Generation
from vrft.training.scoring import parse_completions
from vrft.types import Answer, PromptBatch, Rollout, Sample
from vrft.utils.distributed import raise_on_all_ranks


class Sampled(NamedTuple):
    """k answers to each of P prompts, the samples to score them by, and the completions, in N = P * k rows."""

    answers: list[Answer]
    samples: list[Sample]
    rollout: Rollout
    prompts: PromptBatch


def sample_answers(module: VisionModule, batch: PromptBatch, count: int, sampling: Sampling) -> Sampled:
    """Sample `count` answers to each of P prompts with consecutive indices.

    The random numbers for a question depend only on the seed, the step and the sample's index, so that the answers are
    the same for any number of ranks and batch size.
    """
    length = module.max_completion_length
    key = SamplingKey(module.seed, int(module.steps_done), first=batch.samples[0].index)
    prepared = module.policy.prepare(batch)
    with phase(module.trainer, "sampling", length) as advance:
        rollout = module.rollouts.generate(prepared, Generation(count, length, sampling, key), advance)
    answers, samples = parse_completions(module.task, rollout, batch)
    return Sampled(answers, samples, rollout, prepared)


def finite_scores(
    module: VisionModule, name: str, answers: Sequence[Answer], samples: Sequence[Sample]
) -> list[float | None]:
    """Return a reward's scores of N answers; None where the reward does not apply.

    Raises:
        ConfigurationError: a score is not a finite number, on this rank or on another.
    """

    def score() -> list[float | None]:
        scores = [*module.rewards[name].bounded_scores(answers, samples)]
        if any(score is not None and not math.isfinite(score) for score in scores):
            raise ConfigurationError(f"model.rewards.{name}: expected finite scores; see the warning above")
        return scores

    return raise_on_all_ranks(module.trainer, score)
