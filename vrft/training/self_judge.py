"""Ask the policy, or its reference, about answers: the model's part of `vrft.rewards.SelfPreference`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import Trainer

from vrft.errors import ConfigurationError, RewardFailed
from vrft.policy import Policy
from vrft.policy.plain_text import PRIVATE, plain_text
from vrft.rewards import Reward, SelfPreference
from vrft.rollout import RemoteEngine, RolloutEngine
from vrft.tasks import Task
from vrft.training.fresh_prompts import prepared_prompts
from vrft.training.optimization import Optimization
from vrft.training.strategies import parallelism_of
from vrft.types import Answer, PromptBatch, Question, Sample


class Asked(Task):
    """Asks the query as it is."""

    prompt, form = "{query}", ""

    def question(self, sample: Question, frame: object) -> str:
        return sample.query

    def reasoning_text(self, sample: Question) -> str:
        return ""

    def read(self, content: str, sample: Question, frame: object) -> None:
        return None


def self_judges(rewards: Mapping[str, Reward]) -> dict[str, SelfPreference]:
    """Return the rewards that ask the policy or its reference, by name."""
    return {name: reward for name, reward in rewards.items() if isinstance(reward, SelfPreference)}


def asks_reference(rewards: Mapping[str, Reward]) -> bool:
    """Return whether one of the rewards asks the reference."""
    return any(reward.judge == "reference" for reward in self_judges(rewards).values())


def check_self_judges(rewards: Mapping[str, Reward], beta: float) -> bool:
    """Return whether one of the rewards asks the reference.

    Raises:
        ConfigurationError: the policy judges itself, and nothing holds it near the reference.
    """
    trained = [reward for reward in self_judges(rewards).values() if reward.weight]
    if beta == 0 and any(reward.judge == "policy" for reward in trained):
        raise ConfigurationError(
            "model.beta: expected above 0 with SelfPreference.judge=policy, which drifts with the policy that it judges"
        )
    return asks_reference(rewards)


def check_before_reading(
    rewards: Mapping[str, Reward], policy: Policy, engine: RolloutEngine, reference_follows: bool, trainer: Trainer
) -> None:
    """Check everything that rewards which ask the policy need, before the policy is read.

    Args:
        rewards: the rewards.
        policy: the policy, of which the processor alone is read.
        engine: samples the answers that are scored.
        reference_follows: the reference is an average of the weights.
        trainer: the trainer of the run.

    Raises:
        ConfigurationError: ranks share their weights, the reference is in CPU memory while a server has the GPU, or
            the tokenizer doesn't know the replies.
    """
    if not (judges := self_judges(rewards)):
        return
    if parallelism_of(trainer).waits_for_all_ranks:
        raise ConfigurationError("SelfPreference: expected whole weights on each rank, not trainer.strategy=FSDP2")
    leaves = reference_follows or policy.lora is None or policy.lora.adapter is not None
    colocated = isinstance(engine, RemoteEngine) and engine.gpu_share > 0
    if asks_reference(rewards) and leaves and colocated and not policy.offload_reference:
        raise ConfigurationError(
            "SelfPreference: expected model.policy.offload_reference=true with model.engine.colocated, which moves "
            "the reference away from the GPU while answers are scored"
        )
    processor = policy.reader.read_processor()
    for reward in judges.values():
        replies(reward, processor)


def replies(reward: SelfPreference, processor: Any) -> tuple[list[int], list[int]]:
    """Return the tokens of the replies that approve and disapprove.

    Raises:
        ConfigurationError: the tokenizer doesn't know one of them, or they are the same tokens.
    """
    words = (reward.approval, reward.disapproval)
    yes, no = ([*ids] for ids in plain_text(processor).ids(words))
    unknown = processor.tokenizer.unk_token_id
    for word, ids in zip(words, (yes, no), strict=True):
        if not ids or (unknown is not None and unknown in ids):
            raise ConfigurationError(f"SelfPreference: the policy's tokenizer does not know {word!r}, a reply")
    if yes == no:
        raise ConfigurationError(f"SelfPreference: the replies {words[0]!r} and {words[1]!r} are the same tokens")
    return yes, no


class SelfJudge:
    """Asks a policy, or its reference, about answers."""

    def __init__(self, reward: SelfPreference, policy: Policy, task: Task, optimization: Optimization) -> None:
        """Take the words that the model may reply.

        Args:
            reward: the question, the replies and who judges.
            policy: the policy, loaded.
            task: words the questions that were answered.
            optimization: says how many tokens a forward may have.
        """
        self.reward, self.policy, self.task, self.optimization = reward, policy, task, optimization
        self.replies = replies(reward, policy.processor)

    def __call__(self, answers: Sequence[Answer], samples: Sequence[Question]) -> list[float]:
        """Return P(yes) / (P(yes) + P(no)) of N answers, (N,). Equal answers to a sample are asked about once.

        Raises:
            RewardFailed: the question about an answer leaves no room for a reply in the model's context.
        """
        pairs: dict[tuple[int, str], Sample] = {}
        for answer, sample in zip(answers, samples, strict=True):
            assert isinstance(sample, Sample)
            pairs.setdefault((id(sample), answer.text), sample)
        asked = [self._asked(text, sample) for (_, text), sample in pairs.items()]
        scores = dict(zip(pairs, self._scores(asked), strict=True))
        return [scores[id(sample), answer.text] for answer, sample in zip(answers, samples, strict=True)]

    def gap(self, own: Sequence[float], answers: Sequence[Answer], samples: Sequence[Sample]) -> float:
        """Return how much more the judge likes an answer to each prompt than an answer to the next one, on average.

        Args:
            own: how much it likes the answers.
            answers: an answer to each of P prompts; of a single prompt, the other answer is empty.
            samples: the P samples.
        """
        others = [*answers[1:], answers[0] if len(answers) > 1 else replace(answers[0], text="")]
        other = self(others, samples)
        return sum(own) / len(own) - sum(other) / len(other)

    def _asked(self, completion: str, sample: Sample) -> Sample:
        """Return a sample whose query is the question about an answer."""
        task, frame = self.task, self.policy.encoder(self.task).frame(sample.image)
        question = task.image_note(sample) + task.question(sample, frame)
        plain = PRIVATE.sub("\ufffd", completion)  # prompts use these characters themselves
        return replace(sample, query=self.reward.text(question, plain), examples=())

    @torch.no_grad()
    def _scores(self, asked: Sequence[Sample]) -> list[float]:
        policy = self.policy
        policy.eval()  # training turns dropout on, and rollouts of a server don't turn it off
        encoder = replace(policy.encoder(self.task), task=Asked())
        length = max(map(len, self.replies))
        ids, mask = torch.zeros(2, length, dtype=torch.long), torch.zeros(2, length, dtype=torch.long)
        for row, reply in enumerate(self.replies):
            ids[row, : len(reply)], mask[row, : len(reply)] = torch.tensor(reply), 1
        ids, mask = ids.to(policy.device), mask.to(policy.device)
        by_reference = self.reward.judge == "reference"
        scores: list[float] = []
        with policy.reference_on_device() if by_reference else nullcontext():
            for batch in self._batches(self._fitting(encoder(list(asked)), length)):
                rows = len(batch.inputs)
                log_probs, _ = policy(
                    batch.inputs, ids.repeat(rows, 1), mask.repeat(rows, 1), 1.0, reference=by_reference, entropy=False
                )  # (2 P, T)
                yes, no = log_probs.sum(1).view(rows, 2).double().cpu().T
                scores += (yes - no).sigmoid().tolist()
        return scores

    def _fitting(self, prompts: PromptBatch, reply: int) -> PromptBatch:
        """Return the prompts. Raise RewardFailed if one leaves no room for a reply in the model's context."""
        for sample, prompt in zip(prompts.samples, prompts.inputs, strict=True):
            if (length := prompt["input_ids"].shape[1] + reply) > self.policy.max_positions:
                raise RewardFailed(
                    f"SelfPreference: image {sample.image_id}: the question about an answer and its reply have "
                    f"{length} tokens, more than the model's {self.policy.max_positions}; expected a smaller "
                    "model.max_completion_length or model.policy.max_pixels"
                )
        return prompts

    def _batches(self, prompts: PromptBatch) -> Iterator[PromptBatch]:
        """Yield prompts on the device, as many as a micro-batch may have tokens."""
        limit, start, tokens = self.optimization.max_tokens_per_micro_batch, 0, 0
        lengths = [prompt["input_ids"].shape[1] for prompt in prompts.inputs]
        for end in range(1, len(lengths) + 1):
            tokens += lengths[end - 1]
            if end == len(lengths) or tokens + lengths[end] > limit:
                yield prepared_prompts(self.policy, prompts.select(range(start, end)), self.policy.device)
                start, tokens = end, 0
