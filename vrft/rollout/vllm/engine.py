"""The rollout engine for vLLM servers, which does not import vLLM."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import torch

from vrft.errors import ConfigurationError, RolloutFailed, RolloutRefused
from vrft.policy import Policy
from vrft.policy.plain_text import chat_texts, plain_text
from vrft.policy.processor import shown_images
from vrft.rollout.base import RemoteEngine, Sampling, SamplingKey
from vrft.rollout.vllm.client import Client
from vrft.rollout.vllm.colocated import SleepingServer, check_combination, check_sleep_mode, checked_clients
from vrft.rollout.vllm.completions import (
    Completion,
    CompletionRequest,
    as_rollout,
    chat,
    request_seed,
    sampling_settings,
)
from vrft.rollout.vllm.flags import Colocated
from vrft.rollout.vllm.process import server_process
from vrft.rollout.vllm.server import Server, check_banned_tokens
from vrft.rollout.vllm.weights import FullWeights, LoRAWeights, Weights, check_servable
from vrft.run_dir import RunDir
from vrft.tasks import Task
from vrft.types import PromptBatch, Rollout
from vrft.utils.bounds import NonNegative
from vrft.utils.http_client import Unavailable

RELEASE_SECONDS = 60.0
"""Maximum seconds for a server to fall asleep at the end of a stage, which may have failed."""

MAX_CONCURRENT_REQUESTS = 64  # servers queue requests


class VLLMServer(RemoteEngine):
    """Samples on vLLM servers, among which prompts are distributed. A prompt with its images is sent once for any G."""

    def __init__(
        self,
        urls: list[str] | None = None,
        weights_dir: str | None = None,
        timeout: NonNegative = 300.0,
        patience: NonNegative = 900.0,
        max_gap: NonNegative = 0.1,
        one_step_ahead: bool = False,
        colocated: Colocated | bool = False,
    ) -> None:
        """Set the servers. `python -m vrft serve-command` prints the commands to start them.

        Args:
            urls: addresses, e.g. [http://127.0.0.1:8000]; no requests are sent to other addresses.
            weights_dir: folder for new weights, which servers must see under the same path: /dev/shm/NAME on one
                machine, a shared folder on several; default: vllm in the run's folder.
            timeout: seconds for loading new weights, and for the completions of a prompt, unless `patience` divided by
                (number of servers + 1) is larger.
            patience: seconds without new weights on any server, or without completions of a prompt, after which the run
                saves and ends. Servers queue prompts, so this must be longer than a whole rollout. At the start, also
                the seconds for all servers to report their settings.
            max_gap: maximum mean difference of log-probabilities from the trainer's; above it, the run ends.
            one_step_ahead: sample for the next step while this one trains, with weights that are one step old.
            colocated: sample on the trainer's GPU, with a server that sleeps while the trainer uses the GPU: true, or
                settings such as {memory_share: 0.5}. The run starts and ends the server, unless `urls` names one.
        """
        self.colocated = Colocated() if colocated is True else colocated or None
        if self.colocated is not None:
            self.colocated.check()
        self.clients = checked_clients(urls or [], self.colocated)
        if self.colocated is not None and one_step_ahead:
            raise ConfigurationError(
                "model.engine.one_step_ahead: a server on the trainer's GPU (model.engine.colocated) can't sample "
                "while the trainer uses it"
            )
        self.gpu_share = self.colocated.memory_share if self.colocated else 0.0
        self.weights_dir, self.timeout, self.patience = weights_dir, timeout, patience
        self.max_gap, self.one_step_ahead = max_gap, one_step_ahead
        self.servers: list[Server] = []
        self.stopped = threading.Event()
        self.waited = 0.0
        """Seconds of the patience used up by a failed update of all servers, until the next completions."""
        self.sleeper: SleepingServer | None = None
        self.weights: Weights
        self.task: Task

    @property
    def wakings(self) -> int:
        return self.sleeper.wakings if self.sleeper else 0

    def check(self, policy: Policy) -> None:
        if policy.lora is not None:
            check_servable(policy.lora)
        if self.colocated is not None:
            check_combination(self.colocated, four_bits=policy.quantize is not None)

    def connect(self, policy: Policy, task: Task, folder: Path, run: str, images: int = 1) -> None:
        self.task, self.num_banned = task, len(policy.banned_ids)
        weights_dir = Path(self.weights_dir) if self.weights_dir else RunDir(folder).vllm
        if policy.lora is None:
            complete = self.colocated is not None and self.colocated.sleep_level == 2
            self.weights = FullWeights(weights_dir, run, self.timeout, complete=complete)
        else:
            tower = not policy.frozen_vision
            self.weights = LoRAWeights(weights_dir, run, self.timeout, rank=policy.lora.r, tower=tower)
        deadline = time.monotonic() + self.patience
        if self.colocated is None:
            try:
                self.servers = [self._checked_server(client, deadline) for client in self.clients]
            except Unavailable as error:
                raise ConfigurationError(f"model.engine: {error}") from error
            return
        check_combination(self.colocated, policy.reader.in_four_bits)
        log = RunDir(folder).vllm_log
        source = self.clients[0] if self.clients else server_process(policy, self.colocated, log, images)
        self.sleeper = SleepingServer(self.colocated, self.weights, source, self._checked_server)
        self.sleeper.connect(deadline, self.stopped)

    def _checked_server(self, client: Client, deadline: float) -> Server:
        """Return the server at an address.

        Raises:
            ConfigurationError: the server was started with unsuitable settings.
            Unavailable: the server does not answer before the deadline.
        """
        server = Server(client)
        try:
            info = server.check_settings(deadline)
        except Unavailable as error:
            raise Unavailable(
                f"{client.url} does not report how it was started: {error} (`python -m vrft "
                "serve-command` with the same arguments prints the command to start it with)"
            ) from error
        if self.colocated is not None:
            check_sleep_mode(client, info)
        check_banned_tokens(client, info, self.num_banned)
        self.weights.check(client, info)
        return server

    def write_weights(self, policy: Policy, first: bool) -> None:
        self.weights.write_version(policy, first)

    def update_servers(self) -> None:
        if self.sleeper is not None:  # the server loads the weights when it wakes
            return
        start = time.monotonic()

        def update(server: Server) -> bool:
            try:
                server.update(self.weights, start + self.patience)
            except Unavailable:  # the update is repeated before the server's first prompt
                return False
            return True

        pool = ThreadPoolExecutor(len(self.servers))
        try:
            updated = list(pool.map(update, self.servers))
            self.waited = 0.0 if any(updated) else time.monotonic() - start
        except KeyboardInterrupt:
            self.stop()
            raise
        finally:
            pool.shutdown(wait=False)

    def stop(self) -> None:
        """End running rollouts, whose threads would otherwise delay the end of the process by up to a request."""
        self.stopped.set()
        self.stopped = threading.Event()
        for server in self.servers:
            server.client.cancel()
        if self.sleeper is not None:
            self.sleeper.cancel()

    def sleep(self) -> None:
        if self.sleeper is not None:
            self.sleeper.sleep()

    def remove(self) -> None:
        if self.sleeper is not None:
            with suppress(RolloutFailed):
                self.sleeper.sleep(RELEASE_SECONDS)
        if (self.servers or self.sleeper) and self.weights.number >= 0:
            self.weights.remove(self.clients)

    def close(self) -> None:
        if self.sleeper is not None:
            self.sleeper.close()

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
        request = self._request_builder(policy, batch, num_generations, max_completion_length, sampling, key)
        done: list[int] = []
        prompts, stopped = range(len(batch.samples)), self.stopped

        def complete(p: int) -> list[Completion]:
            rows = self._complete(request(p), key.first + p + key.rank, stopped)
            done.append(p)
            on_token(max_completion_length * len(done) // len(prompts), f"{len(done)} of {len(prompts)} prompts done")
            return rows * (num_generations // len(rows))

        pool = ThreadPoolExecutor(min(len(prompts), MAX_CONCURRENT_REQUESTS))
        try:
            completions = [row for rows in pool.map(complete, prompts) for row in rows]
        finally:
            if len(done) < len(prompts):
                self.stop()
            pool.shutdown(wait=False, cancel_futures=True)
        return as_rollout(policy, completions)

    def _request_builder(
        self,
        policy: Policy,
        batch: PromptBatch,
        num_generations: int,
        max_completion_length: int,
        sampling: Sampling,
        key: SamplingKey,
    ) -> Callable[[int], CompletionRequest]:
        """Return a function that builds the request for prompt p, including its encoded images."""
        banned, stop = policy.banned_ids.tolist(), policy.stop_ids.tolist()
        settings = sampling_settings(sampling, banned, stop) | {
            "n": 1 if sampling.greedy else num_generations,  # all greedy completions are equal
            "max_tokens": max_completion_length,
            "logprobs": True,
            "return_token_ids": True,
        }
        config, encoder = policy.base.config, policy.encoder(self.task)

        def build(p: int) -> CompletionRequest:
            sample, frame, prompt = batch.samples[p], batch.frames[p], batch.inputs[p]
            messages = encoder.chat(sample, frame)
            name = f"sample {sample.index} (image {sample.image_id}, {sample.query!r})"
            if special := plain_text(policy.processor).found(chat_texts(messages)):
                raise RolloutRefused(
                    f"model.engine: {name} contains {special!r}, which the server would read as a special token; "
                    "rename it, or sample without vLLM"
                )
            body = settings | {"messages": chat(messages, shown_images(sample))}
            if not sampling.greedy:
                body["seed"] = request_seed(key, p)
            return CompletionRequest(
                body,
                sample_name=name,
                prompt_ids=prompt["input_ids"][0].tolist(),
                image_token_id=config.image_token_id,
                stop_ids=frozenset(stop),
                banned_ids=frozenset(banned),
                vocab_size=config.get_text_config().vocab_size,
            )

        return build

    def _complete(self, request: CompletionRequest, first: int, stopped: threading.Event) -> list[Completion]:
        """Return the completions of the first server that returns valid ones, starting with server number `first`.

        Raises:
            RolloutFailed: `stopped` is set, or no server returns valid completions within `patience`.
        """
        deadline = time.monotonic() + max(0.0, self.patience - self.waited)
        # long enough for a busy server, short enough to ask every server once more if a response is lost
        seconds = max(self.timeout, self.patience / (1 + len(self.servers)))
        while True:
            try:
                server = self._next_server(first, deadline, stopped)
                rows = server.complete(request, self.weights, deadline, seconds)
            except Unavailable as error:
                last_error = error
            else:
                self.waited = 0.0
                return rows
            if time.monotonic() >= deadline:
                raise RolloutFailed(
                    f"no server answered the prompt of {request.sample_name} within {self.patience:g} s "
                    f"(model.engine.patience); the last error was: {last_error}"
                )

    def _next_server(self, first: int, deadline: float, stopped: threading.Event) -> Server:
        """Wait for the server with the earliest next attempt and return it, preferring server number `first`.

        Raises:
            RolloutFailed: `stopped` is set.
            Unavailable: the server on this GPU does not wake.
        """
        if self.sleeper is not None:
            self.servers = [self.sleeper.wake(deadline, stopped)]
        servers = [self.servers[(first + i) % len(self.servers)] for i in range(len(self.servers))]
        server = min(servers, key=lambda server: max(0.0, server.retry_at - time.monotonic()))
        if stopped.wait(max(0.0, min(server.retry_at, deadline) - time.monotonic())):
            raise RolloutFailed("the rollout was cancelled")
        return server
