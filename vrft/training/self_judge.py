"""Ask the policy or its reference about answers, for `vrft.rewards.SelfPreference`."""

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


class QueryTask(Task):
    """A task whose prompt is the query."""

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
        ConfigurationError: the policy judges itself, and `model.beta` is 0.
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
    """Check the requirements of rewards that ask the policy, before the policy is read.

    Args:
        rewards: the rewards.
        policy: the policy, of which only the processor is read.
        engine: the engine that samples the answers.
        reference_follows: whether the reference is a moving average of the weights.
        trainer: the trainer of the run.

    Raises:
        ConfigurationError: weights are sharded over ranks, the reference would be offloaded for a server while it is
            asked, or the tokenizer can't encode the replies.
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
    """Return the token ids of the approving and the disapproving reply.

    Raises:
        ConfigurationError: the tokenizer can't encode a reply, or both replies have the same tokens.
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
    """Asks a policy or its reference about answers."""

    def __init__(self, reward: SelfPreference, policy: Policy, task: Task, optimization: Optimization) -> None:
        """Tokenise the replies.

        Args:
            reward: defines the question, the replies and the judge.
            policy: the loaded policy.
            task: the task of the answered questions.
            optimization: defines the maximum number of tokens in a forward.
        """
        self.reward, self.policy, self.task, self.optimization = reward, policy, task, optimization
        self.replies = replies(reward, policy.processor)

    def __call__(self, answers: Sequence[Answer], samples: Sequence[Question]) -> list[float]:
        """Return P(yes) / (P(yes) + P(no)) for each of N answers. Ask about equal answers to a sample once.

        Raises:
            RewardFailed: the question about an answer leaves no room for a reply in the model's context.
        """
        pairs: dict[tuple[int, str], Sample] = {}
        for answer, sample in zip(answers, samples, strict=True):
            assert isinstance(sample, Sample)
            pairs.setdefault((id(sample), answer.text), sample)
        asked = [self._judging_sample(text, sample) for (_, text), sample in pairs.items()]
        scores = dict(zip(pairs, self._scores(asked), strict=True))
        return [scores[id(sample), answer.text] for answer, sample in zip(answers, samples, strict=True)]

    def gap(self, own: Sequence[float], answers: Sequence[Answer], samples: Sequence[Sample]) -> float:
        """Return the mean score of answers to their own prompts minus that of answers to the respective next prompt.

        Args:
            own: scores of the answers.
            answers: an answer to each of P prompts. For a single prompt, the other answer is an empty text.
            samples: the P samples.
        """
        others = [*answers[1:], answers[0] if len(answers) > 1 else replace(answers[0], text="")]
        other = self(others, samples)
        return sum(own) / len(own) - sum(other) / len(other)

    def _judging_sample(self, completion: str, sample: Sample) -> Sample:
        """Return a sample whose query is the question about an answer."""
        task, frame = self.task, self.policy.encoder(self.task).frame(sample.image)
        question = task.image_note(sample) + task.question(sample, frame)
        plain = PRIVATE.sub("\ufffd", completion)  # prompts use these characters internally
        return replace(sample, query=self.reward.text(question, plain), examples=())

    @torch.no_grad()
    def _scores(self, asked: Sequence[Sample]) -> list[float]:
        policy = self.policy
        policy.eval()  # training enables dropout, and rollouts on servers do not disable it
        encoder = replace(policy.encoder(self.task), task=QueryTask())
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
        """Return the prompts. Raise RewardFailed if a prompt leaves no room for a reply in the model's context."""
        for sample, prompt in zip(prompts.samples, prompts.inputs, strict=True):
            if (length := prompt["input_ids"].shape[1] + reply) > self.policy.max_positions:
                raise RewardFailed(
                    f"SelfPreference: image {sample.image_id}: the question about an answer and its reply have "
                    f"{length} tokens, more than the model's {self.policy.max_positions}; expected a smaller "
                    "model.max_completion_length or model.policy.max_pixels"
                )
        return prompts

    def _batches(self, prompts: PromptBatch) -> Iterator[PromptBatch]:
        """Yield the prompts on the device, in batches of at most the number of tokens of a micro-batch."""
        limit, start, tokens = self.optimization.max_tokens_per_micro_batch, 0, 0
        lengths = [prompt["input_ids"].shape[1] for prompt in prompts.inputs]
        for end in range(1, len(lengths) + 1):
            tokens += lengths[end - 1]
            if end == len(lengths) or tokens + lengths[end] > limit:
                yield prepared_prompts(self.policy, prompts.select(range(start, end)), self.policy.device)
                start, tokens = end, 0
