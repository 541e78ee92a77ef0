"""Build requests for completions, and check responses before training on them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vrft.errors import RolloutRefused
from vrft.policy import Policy
from vrft.rollout.base import Sampling, SamplingKey
from vrft.types import Rollout
from vrft.utils.chat_images import image_part
from vrft.utils.display import counted
from vrft.utils.http_client import Unavailable


class TokenLogProb(msgspec.Struct):
    """Log-probability of a token under the distribution from which it was sampled."""

    logprob: float


class LogProbs(msgspec.Struct):
    """Log-probabilities of a completion's tokens."""

    content: list[TokenLogProb]


class Choice(msgspec.Struct):
    """A completion of the prompt."""

    index: int
    token_ids: list[int]
    logprobs: LogProbs
    finish_reason: str


class Reply(msgspec.Struct):
    """Response of `/v1/chat/completions`, with G completions of a prompt."""

    model: str
    prompt_token_ids: list[int]  # the server's encoding of the prompt
    choices: list[Choice]


Completion = tuple[list[int], list[float]]
"""Token ids, including the stop token, and their log-probabilities."""


@dataclass(frozen=True)
class CompletionRequest:
    """A request for G completions of a prompt, and the data to check its response.

    Attributes:
        body: the request without the model's name.
        sample_name: name of the sample, for messages.
        prompt_ids: the trainer's encoding of the prompt, including image tokens.
        image_token_id: id of image tokens.
        stop_ids: ids that end a completion.
        banned_ids: ids that must not be sampled.
        vocab_size: size of the vocabulary.
    """

    body: dict[str, Any]
    sample_name: str
    prompt_ids: list[int]
    image_token_id: int
    stop_ids: frozenset[int]
    banned_ids: frozenset[int]
    vocab_size: int

    def parse(self, content: bytes, model: str) -> list[Completion]:
        """Return the completions of a response, in order.

        Raises:
            Unavailable: the response is not valid for this request.
            RolloutRefused: server and trainer encode the prompt differently.
        """
        try:
            reply = msgspec.json.decode(content, type=Reply)
        except (msgspec.DecodeError, RecursionError) as error:
            raise Unavailable(f"the response can't be read: {error}") from error
        if reply.model != model:
            raise Unavailable(f"the response is of model {reply.model!r}, expected {model!r}")
        self._check_prompt(reply.prompt_token_ids)
        choices = sorted(reply.choices, key=lambda choice: choice.index)
        if [choice.index for choice in choices] != list(range(self.body["n"])):
            raise Unavailable(f"the response has {counted(len(choices), 'completion')}, expected {self.body['n']}")
        return [self._check_completion(choice) for choice in choices]

    def _check_prompt(self, found: list[int]) -> None:
        expected = self.prompt_ids
        if found == expected:
            return
        found_images, expected_images = (ids.count(self.image_token_id) for ids in (found, expected))
        start = next((i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), len(expected))
        if found_images != expected_images:
            reason = f"{found_images} image tokens instead of {expected_images}: other limits for images?"
        else:
            reason = f"{len(found)} tokens instead of {len(expected)}, from token {start} on: another chat template?"
        raise RolloutRefused(
            f"model.engine: the server reads the prompt of {self.sample_name} differently than the trainer: {reason} "
            "(`python -m vrft serve-command` prints the command to start it with)"
        )

    def _check_completion(self, choice: Choice) -> Completion:
        ids, log_probs = choice.token_ids, [token.logprob for token in choice.logprobs.content]
        ended = bool(ids) and ids[-1] in self.stop_ids
        if len(ids) != len(log_probs) or not 0 < len(ids) <= self.body["max_tokens"]:
            raise Unavailable(f"a completion has {len(ids)} tokens and {len(log_probs)} log-probabilities")
        if choice.finish_reason not in ("stop", "length") or not (ended or len(ids) == self.body["max_tokens"]):
            raise Unavailable(f"a completion ended early, with finish_reason {choice.finish_reason!r}")
        if not all(math.isfinite(value) and value <= 1e-3 for value in log_probs):
            raise Unavailable("a completion has log-probabilities that are not finite or above 0")
        if not all(0 <= token < self.vocab_size and token not in self.banned_ids for token in ids):
            raise Unavailable("a completion has banned or unknown tokens")
        return ids, log_probs


def sampling_settings(sampling: Sampling, banned: list[int], stop: list[int]) -> dict[str, Any]:
    """Return the trainer's sampling distribution as settings of a request. Set all, as servers have other defaults.

    Banned tokens get the lowest allowed bias, -100 before the temperature, which gives a probability of 0 in float32.
    """
    return {
        "temperature": 0.0 if sampling.greedy else sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "logit_bias": {str(token): -100 for token in banned},
        "stop_token_ids": stop,
    }


def chat(messages: Sequence[dict[str, Any]], images: Sequence[Image.Image]) -> list[dict[str, Any]]:
    """Replace the image placeholders in a task's messages by losslessly encoded images, in order."""
    parts = iter([image_part(image) for image in images])

    def with_images(content: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        return [next(parts) if item["type"] == "image" else item for item in content]

    return [{"role": turn["role"], "content": with_images(turn["content"])} for turn in messages]


def request_seed(key: SamplingKey, prompt: int) -> int:
    """Return the seed of the request for this rank's prompt with index `prompt`, whichever server it is sent to.

    The server derives the seeds of the G completions from it.
    """
    numbers = (key.seed, key.rollout, (key.first + prompt) * key.world_size + key.rank, key.first_generation)
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(2))


def as_rollout(policy: Policy, completions: list[Completion]) -> Rollout:
    """Convert N completions to a padded rollout on the policy's device."""
    device = policy.banned_ids.device
    ids = pad_sequence([torch.tensor(row) for row, _ in completions], batch_first=True).to(device)  # (N, T)
    log_probs = pad_sequence([torch.tensor(row) for _, row in completions], batch_first=True).to(device)  # (N, T)
    mask = pad_sequence([torch.ones(len(row), dtype=torch.long) for row, _ in completions], batch_first=True)
    mask = mask.to(device)  # (N, T)
    truncated: Tensor = ~(torch.isin(ids, policy.stop_ids) & mask.bool()).any(1)  # (N,)
    return Rollout(ids, mask, log_probs, log_probs, truncated, policy.decode(ids, mask))
