"""Rollouts on vLLM servers, over HTTP. vLLM itself is not imported."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vrft.errors import ConfigurationError, RolloutFailed, RolloutRefused
from vrft.policy import Policy
from vrft.rollout.base import RemoteEngine, Sampling, SamplingKey
from vrft.rollout.vllm.client import Client, Refused, Unavailable
from vrft.rollout.vllm.reply import Completion, CompletionRequest, chat, request_seed, sampling_settings
from vrft.rollout.vllm.status import ServerInfo, get_json, model_names
from vrft.rollout.vllm.weights import FullWeights, LoRAWeights, Weights
from vrft.tasks import Task
from vrft.types import PromptBatch, Rollout

START = 60.0
"""Seconds that a server has to say how it was started."""
AT_ONCE = 64
"""Requests on their way: servers put what they can't compute yet into a queue."""
FIRST_REST, LONGEST_REST = 0.5, 30.0
"""Seconds that a server is left alone after a failure; twice as long after each further one."""


class VLLMServer(RemoteEngine):
    """vLLM servers that share the prompts. A prompt and its image are sent once, whatever G is."""

    def __init__(
        self,
        urls: list[str],
        weights_dir: str | None = None,
        timeout: float = 300.0,
        patience: float = 900.0,
        max_gap: float = 0.1,
        one_step_ahead: bool = False,
    ) -> None:
        """Names the servers; `python -m vrft serve-command` prints how to start one.

        Args:
            urls: addresses, e.g. [http://127.0.0.1:8000]; nothing is sent anywhere else.
            weights_dir: for new weights; servers have to see it under the same path (/dev/shm/NAME on one machine, a
                shared folder on several). Default: vllm in the run's folder.
            timeout: seconds that a server has for the completions of a prompt, or for taking weights over.
            patience: seconds after which a run gives up a prompt that no server answers: it saves and ends.
            max_gap: mean difference of log-probabilities from the trainer's above which it ends as well.
            one_step_ahead: sample for the next step while this one trains, with weights that are one step old.
        """
        if not urls:
            raise ConfigurationError("model.engine.urls: expected at least one address, e.g. [http://127.0.0.1:8000]")
        self.clients = [Client(url) for url in urls]
        if len({client.url for client in self.clients}) < len(urls):
            raise ConfigurationError("model.engine.urls: the same address twice")
        self.weights_dir, self.timeout, self.patience = weights_dir, timeout, patience
        self.max_gap, self.one_step_ahead = max_gap, one_step_ahead
        self.servers: list[Server] = []
        self.stopped = threading.Event()
        self.weights: Weights
        self.task: Task

    def connect(self, policy: Policy, task: Task, folder: Path, run: str) -> None:
        self.task = task
        place = Path(self.weights_dir) if self.weights_dir else folder / "vllm"
        if policy.lora is None:
            self.weights = FullWeights(place, run, self.timeout)
        else:
            self.weights = LoRAWeights(place, run, self.timeout, rank=policy.lora.r, tower=not policy.frozen_vision)
        self.servers = [Server(client) for client in self.clients]
        for server in self.servers:
            try:
                info = server.describe()
            except Unavailable as error:
                raise ConfigurationError(
                    f"model.engine: {server.client.url} does not say how it was started: {error} (`python -m vrft "
                    "serve-command` with the same arguments prints how to)"
                ) from error
            self.weights.check(server.client, info)

    def write_weights(self, policy: Policy, first: bool) -> None:
        self.weights.write_version(policy, first)

    def update_servers(self) -> None:
        deadline = time.monotonic() + self.patience

        def update(server: Server) -> None:
            with suppress(Unavailable):  # it gets another chance with the first prompt that it is asked
                server.update(self.weights, deadline)

        with ThreadPoolExecutor(len(self.servers)) as pool:
            list(pool.map(update, self.servers))

    def stop(self) -> None:
        self.stopped.set()
        self.stopped = threading.Event()

    def remove(self) -> None:
        if self.servers and self.weights.number >= 0:
            self.weights.remove([server.client for server in self.servers])

    @torch.no_grad()
    def generate(
        self,
        policy: Policy,
        batch: PromptBatch,
        num_generations: int,
        *,
        max_completion_length: int,
        sampling: Sampling,
        key: SamplingKey,
        on_token: Callable[..., None],
    ) -> Rollout:
        banned, stop = policy.banned_ids.tolist(), policy.stop_ids.tolist()
        fixed = sampling_settings(sampling, banned, stop) | {
            "n": 1 if sampling.greedy else num_generations,  # one greedy answer is all of them
            "max_tokens": max_completion_length,
            "logprobs": True,
            "return_token_ids": True,
        }
        config = policy.base.config

        def request_for(p: int) -> CompletionRequest:
            sample, frame, prompt = batch.samples[p], batch.frames[p], batch.inputs[p]
            body = fixed | {"messages": chat(self.task.messages(sample, frame), sample.image)}
            if not sampling.greedy:
                body["seed"] = request_seed(key, p)
            ids = prompt["input_ids"][0].tolist()
            size = config.get_text_config().vocab_size
            name = f"sample {sample.index} (image {sample.image_id}, {sample.query!r})"
            return CompletionRequest(body, name, ids, config.image_token_id, frozenset(stop), frozenset(banned), size)

        done: list[int] = []
        prompts, stopped = range(len(batch.samples)), self.stopped

        def answer(p: int) -> list[Completion]:
            found = self._answer(request_for(p), key.first + p + key.rank, stopped)
            done.append(p)
            on_token(max_completion_length * len(done) // len(prompts), f"{len(done)} of {len(prompts)} prompts done")
            return found * (num_generations // len(found))

        pool = ThreadPoolExecutor(min(len(prompts), AT_ONCE))
        try:
            completions = [row for rows in pool.map(answer, prompts) for row in rows]
        finally:
            if len(done) < len(prompts):
                self.stop()
            pool.shutdown(wait=False, cancel_futures=True)
        return as_rollout(policy, completions)

    def _answer(self, request: CompletionRequest, first: int, stopped: threading.Event) -> list[Completion]:
        """Of the first server that gives one that can be trained on, beginning with number `first`."""
        deadline = time.monotonic() + self.patience
        while True:
            turn = [self.servers[(first + i) % len(self.servers)] for i in range(len(self.servers))]
            server = min(turn, key=lambda server: max(0.0, server.retry_at - time.monotonic()))
            if stopped.wait(max(0.0, min(server.retry_at, deadline) - time.monotonic())):
                raise RolloutFailed(f"the prompt of {request.name} was given up")
            try:
                return server.complete(request, self.weights, deadline)
            except Unavailable as error:
                problem = error
            if time.monotonic() >= deadline:
                raise RolloutFailed(
                    f"no server answered the prompt of {request.name} within {self.patience:g} s "
                    f"(model.engine.patience); the last word was: {problem}"
                )


class Server:
    """A server, what it is known to have, and whether it is left alone for a while."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.has: str | None = None  # the version of the weights
        self.failures, self.retry_at = 0, 0.0
        self.problem: Unavailable | None = None  # the last one
        self.seeds = True
        self.base = ""  # its name of the model
        self.lock = threading.Lock()

    def describe(self) -> ServerInfo:
        """How it was started.

        Raises:
            ConfigurationError: its log-probabilities are not those of what is drawn.
            Unavailable: it does not say.
        """
        info = get_json(self.client, "/server_info?config_format=json", ServerInfo, timeout=START)
        config = info.vllm_config
        if config.model_config.logprobs_mode != "processed_logprobs":
            raise ConfigurationError(
                f"model.engine: {self.client.url} gives log-probabilities of another distribution than it draws from: "
                "--logprobs-mode processed_logprobs"
            )
        on_cpu = str(config.device_config.device).startswith("cpu")
        self.seeds = not (on_cpu and config.scheduler_config.enable_chunked_prefill)  # together they end vLLM 0.32
        self.base = model_names(self.client)[0]
        return info

    def update(self, weights: Weights, deadline: float) -> None:
        """Let it have the present weights. Raises Unavailable."""
        if not self.lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise Unavailable(f"{self.client.url} has not taken the weights over in time")
        try:
            if self.problem is not None and time.monotonic() < self.retry_at:  # since this thread began to wait
                raise Unavailable(str(self.problem))
            if self.has != weights.version:
                with self._trying():
                    weights.update(self.client.until(deadline))
                self.has = weights.version
        finally:
            self.lock.release()

    def complete(self, request: CompletionRequest, weights: Weights, deadline: float) -> list[Completion]:
        """Completions under the present weights. Raises Unavailable."""
        self.update(weights, deadline)
        client, model = self.client.until(deadline), weights.model(self.base)
        body = request.body | {"model": model}
        if not self.seeds:
            body.pop("seed", None)
        with self._trying():
            try:
                content = client.ask("POST", "/v1/chat/completions", body, timeout=weights.timeout)
            except Refused as error:
                if error.status == 404:  # started again, it knows no adapter
                    raise Unavailable(str(error)) from error
                raise RolloutRefused(f"model.engine: the prompt of {request.name} is refused: {error}") from error
            found = request.read(content, model)
            if not weights.is_current(client):
                raise Unavailable(f"{self.client.url} answered with other weights than it was sent")
        self.failures, self.retry_at = 0, 0.0
        return found

    @contextmanager
    def _trying(self) -> Iterator[None]:
        """Around what it is asked: after a failure it rests, and its weights are looked at again."""
        try:
            yield
        except Unavailable as error:
            self.problem = error
            now = time.monotonic()
            if now >= self.retry_at:  # of several requests that fail together, the first counts
                self.retry_at = now + min(LONGEST_REST, FIRST_REST * 2 ** min(self.failures, 10))
                self.failures += 1
            self.has = None
            raise


def as_rollout(policy: Policy, completions: list[Completion]) -> Rollout:
    """N completions, padded, on the policy's device."""
    device = policy.banned_ids.device
    ids = pad_sequence([torch.tensor(row) for row, _ in completions], batch_first=True).to(device)  # (N, T)
    log_probs = pad_sequence([torch.tensor(row) for _, row in completions], batch_first=True).to(device)  # (N, T)
    mask = pad_sequence([torch.ones(len(row), dtype=torch.long) for row, _ in completions], batch_first=True)
    mask = mask.to(device)  # (N, T)
    truncated: Tensor = ~(torch.isin(ids, policy.stop_ids) & mask.bool()).any(1)  # (N,)
    return Rollout(ids, mask, log_probs, log_probs, truncated, policy.decode(ids, mask))
