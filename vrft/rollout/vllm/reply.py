"""What is sent for a prompt, and what an answer has to be before anything is learnt from it."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from PIL import Image

from vrft.errors import RolloutRefused
from vrft.rollout.base import Sampling, SamplingKey
from vrft.rollout.vllm.client import Unavailable


class TokenLogProb(msgspec.Struct):
    """A sampled token's log-probability, as it was drawn."""

    logprob: float


class LogProbs(msgspec.Struct):
    """Those of a completion."""

    content: list[TokenLogProb]


class Choice(msgspec.Struct):
    """A completion."""

    index: int
    token_ids: list[int]
    logprobs: LogProbs
    finish_reason: str


class Reply(msgspec.Struct):
    """G completions of a prompt, by which model, and the prompt as the server read it."""

    model: str
    prompt_token_ids: list[int]
    choices: list[Choice]


Completion = tuple[list[int], list[float]]
"""Token ids with the end token, and their log-probabilities."""


@dataclass(frozen=True)
class CompletionRequest:
    """G completions of a prompt: the request, and what its answer is held against."""

    body: dict[str, Any]
    name: str  # of the sample, for messages
    prompt: list[int]  # its token ids, image tokens and all
    image_token: int
    stop: frozenset[int]
    banned: frozenset[int]
    vocabulary: int

    def read(self, content: bytes, model: str) -> list[Completion]:
        """The completions, in order.

        Raises:
            Unavailable: it is not what was asked for.
            RolloutRefused: the server reads the prompt otherwise than the trainer.
        """
        try:
            reply = msgspec.json.decode(content, type=Reply)
        except (msgspec.DecodeError, RecursionError) as error:
            raise Unavailable(f"an answer that can't be read: {error}") from error
        if reply.model != model:
            raise Unavailable(f"an answer of {reply.model!r}, where {model!r} was asked")
        self._check_prompt(reply.prompt_token_ids)
        choices = sorted(reply.choices, key=lambda choice: choice.index)
        if [choice.index for choice in choices] != list(range(self.body["n"])):
            raise Unavailable(f"{len(choices)} completions instead of {self.body['n']}")
        return [self._completion(choice) for choice in choices]

    def _check_prompt(self, found: list[int]) -> None:
        if found == self.prompt:
            return
        images = [ids.count(self.image_token) for ids in (found, self.prompt)]
        place = next((i for i, (a, b) in enumerate(zip(found, self.prompt, strict=False)) if a != b), len(self.prompt))
        if images[0] != images[1]:
            reason = f"{images[0]} image tokens instead of {images[1]}: other min_pixels or max_pixels?"
        else:
            reason = f"{len(found)} tokens instead of {len(self.prompt)}, from token {place} on: another chat template?"
        raise RolloutRefused(
            f"model.engine: the server reads the prompt of {self.name} otherwise than the trainer: {reason} "
            "(`python -m vrft serve-command` prints what to start it with)"
        )

    def _completion(self, choice: Choice) -> Completion:
        ids, log_probs = choice.token_ids, [token.logprob for token in choice.logprobs.content]
        ended = bool(ids) and ids[-1] in self.stop
        if len(ids) != len(log_probs) or not 0 < len(ids) <= self.body["max_tokens"]:
            raise Unavailable(f"a completion of {len(ids)} tokens with {len(log_probs)} log-probabilities")
        if choice.finish_reason not in ("stop", "length") or not (ended or len(ids) == self.body["max_tokens"]):
            raise Unavailable(f"a completion that ended early, by {choice.finish_reason!r}")
        if not all(math.isfinite(value) and value <= 1e-3 for value in log_probs):
            raise Unavailable("log-probabilities that are none")
        if not all(0 <= token < self.vocabulary and token not in self.banned for token in ids):
            raise Unavailable("tokens that were not to be sampled")
        return ids, log_probs


def sampling_settings(sampling: Sampling, banned: list[int], stop: list[int]) -> dict[str, Any]:
    """The trainer's distribution in the server's words. All are said: the server may have defaults of its own.

    Banned tokens get the lowest bias there is, -100 before the temperature: what is left of them is nothing in float32.
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


def chat(messages: list[dict[str, Any]], image: Image.Image) -> list[dict[str, Any]]:
    """A task's messages with the image in its place, pixel for pixel."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "PNG", compress_level=1)
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    part = {"type": "image_url", "image_url": {"url": url}}
    return [
        {"role": turn["role"], "content": [part if item["type"] == "image" else item for item in turn["content"]]}
        for turn in messages
    ]


def request_seed(key: SamplingKey, prompt: int) -> int:
    """Of a prompt of this rank: the same for the same row of the same step, whatever server answers.

    The server numbers its completions from there on.
    """
    numbers = (key.seed, key.rollout, (key.first + prompt) * key.world_size + key.rank, key.first_generation)
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(2))
