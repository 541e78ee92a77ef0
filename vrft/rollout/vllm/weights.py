"""Bringing weights to vLLM servers: adapters by their own route, all else through a file that both sides see."""

from __future__ import annotations

import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from vrft.errors import ConfigurationError, RolloutFailed, RolloutRefused
from vrft.policy import Policy
from vrft.rollout.vllm.client import Client, Refused, Unavailable
from vrft.rollout.vllm.status import STATUS_TIMEOUT, Reset, ServerInfo, decode, model_names, weight_version

CACHES = ("/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache")
"""What a server remembers that old weights made: keys and values, images, what the vision tower made of them."""

NOT_SEEN = ("No such file", "Cannot find any model weights")
"""What a server that looks for weights in vain says with status 500."""

LOADING = "already been loaded"
"""What it says of an adapter that it was told to load before, in a request that timed out."""


class Weights(ABC):
    """Versions of the weights: on a disk or in shared memory, and on servers."""

    def __init__(self, folder: Path, run: str, timeout: float) -> None:
        """Starts at no version.

        Args:
            folder: for files, that all servers see under the same path.
            run: part of every version's name, so that no other run's weights are taken for these.
            timeout: seconds for one request.
        """
        self.folder, self.run, self.timeout = folder, run, timeout
        self.number = -1

    @property
    def version(self) -> str:
        return f"vrft-{self.run}-{self.number}"

    @property
    def path(self) -> Path:
        """Of the present version."""
        return self.folder / self.version

    @abstractmethod
    def check(self, server: Client, info: ServerInfo) -> None:
        """Raise ConfigurationError if a server can't take weights like these."""

    @abstractmethod
    def write(self, policy: Policy, weights: dict[str, Tensor], folder: Path) -> None:
        """Write the present version."""

    def collect(self, policy: Policy) -> dict[str, Tensor]:
        """What the present version consists of."""
        return policy.trained_weights()

    @abstractmethod
    def is_current(self, server: Client) -> bool:
        """Whether a server answers with the present version."""

    @abstractmethod
    def push(self, server: Client) -> None:
        """Let it take the present version over. Raises Unavailable or Refused."""

    def model(self, base: str) -> str:
        """What a request calls the model; `base`: the server's name of it."""
        return base

    def write_version(self, policy: Policy, first: bool) -> None:
        """Go on to the next version, which the `first` of several ranks writes. They call this together.

        Raises:
            RolloutFailed: it can't be written.
        """
        before, self.number = self.path, self.number + 1
        weights = self.collect(policy) if first or policy.is_sharded else {}
        if first:
            partial = self.path.with_suffix(".partial")
            try:
                partial.mkdir(parents=True)
                self.write(policy, weights, partial)
                partial.replace(self.path)
            except (OSError, SafetensorError) as error:
                shutil.rmtree(partial, ignore_errors=True)
                raise RolloutFailed(f"the weights can't be written to {self.path}: {error}") from error
            shutil.rmtree(before, ignore_errors=True)

    def remove(self, servers: Sequence[Client]) -> None:
        """Remove the files of the present version."""
        shutil.rmtree(self.path, ignore_errors=True)

    def update(self, server: Client) -> None:
        """Let a server have the present version, unless it has. One process at a time does that.

        Raises:
            Unavailable: it could not be had this time.
            RolloutRefused: the server does not see the first version; of later ones, a folder may know late.
        """
        with self._lock(server):
            if self.is_current(server):
                return
            try:
                self.push(server)
            except (Unavailable, Refused) as error:
                if not is_final(error):
                    raise Unavailable(str(error)) from error
                kind = RolloutRefused if self.number == 0 else Unavailable
                raise kind(
                    f"model.engine: {server.url} does not take the weights of {self.path}: {error}; does it see that "
                    "folder (model.engine.weights_dir)?"
                ) from error
            if not self.is_current(server):
                raise Unavailable(f"{server.url} does not answer with the weights it was sent ({self.version})")

    def _lock(self, server: Client) -> TextIO:
        import fcntl  # POSIX alone has it, and Windows alone has no vLLM

        name = "".join(c if c.isalnum() else "-" for c in server.url)
        try:
            lock = (self.folder / f"{name}.lock").open("w")
            while True:
                with suppress(BlockingIOError):
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return lock
                if time.monotonic() > server.deadline:
                    raise Unavailable(f"{server.url}: another process still brings it weights")
                time.sleep(0.05)
        except OSError as error:
            raise RolloutFailed(f"model.engine.weights_dir: every rank has to see that folder: {error}") from error

    def post(self, server: Client, path: str, body: Mapping[str, Any] | None = None) -> bytes:
        return server.ask("POST", path, body, timeout=self.timeout)

    def reset_caches(self, server: Client) -> None:
        """Forget what old weights made."""
        for path in CACHES:
            answer = self.post(server, path)
            if path == CACHES[0] and not decode(answer, Reset, server).success:
                raise Unavailable(f"{server.url}{path}: the cache is in use")


def is_final(error: Unavailable | Refused) -> bool:
    """Whether a server that did not take weights over won't the next time."""
    if isinstance(error, Refused):
        return LOADING not in str(error)
    return any(text in str(error) for text in NOT_SEEN)


class LoRAWeights(Weights):
    """LoRA: every version is an adapter of its own, in a folder and under a name that are new.

    An adapter that is loaded again under its old name is answered for out of caches that the old one filled.
    """

    def __init__(self, *args: Any, rank: int, tower: bool) -> None:
        """`rank` of the adapters; `tower`: the vision tower has some."""
        super().__init__(*args)
        self.rank, self.tower = rank, tower

    def model(self, base: str) -> str:
        return self.version

    def check(self, server: Client, info: ServerInfo) -> None:
        lora = info.vllm_config.lora_config
        if lora is None or not info.vllm_env.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING"):
            problem = "takes no adapters at run time: --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"
        elif lora.max_lora_rank < self.rank:
            problem = f"takes adapters of rank {lora.max_lora_rank} at most: --max-lora-rank {self.rank}"
        elif self.tower and not lora.enable_tower_connector_lora:
            problem = (
                "would leave the vision tower's adapters out without a word: --enable-tower-connector-lora, or no "
                "adapters there (model.policy.lora.target_modules)"
            )
        else:
            return
        raise ConfigurationError(f"model.engine: {server.url} {problem} (`python -m vrft serve-command` prints all)")

    def write(self, policy: Policy, weights: dict[str, Tensor], folder: Path) -> None:
        assert isinstance(policy.model, PeftModel)
        policy.model.save_pretrained(folder, state_dict=weights)

    def remove(self, servers: Sequence[Client]) -> None:
        deadline = time.monotonic() + STATUS_TIMEOUT
        for server in servers:
            with suppress(Unavailable, Refused):  # it has lost it already
                self.post(server.until(deadline), "/v1/unload_lora_adapter", {"lora_name": self.version})
        super().remove(servers)

    def is_current(self, server: Client) -> bool:
        return self.version in model_names(server)

    def push(self, server: Client) -> None:
        mine = [name for name in model_names(server) if name.startswith(f"vrft-{self.run}-")]
        self.post(server, "/v1/load_lora_adapter", {"lora_name": self.version, "lora_path": str(self.path.resolve())})
        for name in mine:
            self.post(server, "/v1/unload_lora_adapter", {"lora_name": name})
        self.reset_caches(server)


class FullWeights(Weights):
    """Full fine-tuning: one safetensors file, which the server's plugin reads while requests wait.

    Without the plugin, the server loads a folder as it did at its start.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.plugged: dict[str, bool] = {}

    def check(self, server: Client, info: ServerInfo) -> None:
        transfer = info.vllm_config.weight_transfer_config
        self.plugged[server.url] = transfer is not None and transfer.backend == "vrft"

    def collect(self, policy: Policy) -> dict[str, Tensor]:
        """At first all there is: what this run leaves as it is, another may have changed on a server."""
        return policy.trained_weights(frozen=self.number == 0)

    def write(self, policy: Policy, weights: dict[str, Tensor], folder: Path) -> None:
        once = {value.data_ptr(): name for name, value in reversed(weights.items())}  # a tied head is the embeddings
        rounded = {name: weights[name].to(policy.dtype).contiguous() for name in once.values()}  # as it is computed
        save_file(rounded, folder / "model.safetensors")
        if not all(self.plugged.values()):
            policy.base.config.save_pretrained(folder)

    def is_current(self, server: Client) -> bool:
        return weight_version(server) == self.version

    def push(self, server: Client) -> None:
        self.post(server, "/pause?mode=keep")
        folder = str(self.path.resolve())
        if self.plugged[server.url]:
            self.post(server, "/init_weight_transfer_engine", {"init_info": {}})
            self._start(server)
            self.post(server, "/update_weights", {"update_info": {"path": f"{folder}/model.safetensors"}})
            self.post(server, "/finish_weight_update")
        else:
            reload = {"method": "reload_weights", "kwargs": {"weights_path": folder}}
            self.post(server, "/collective_rpc", reload)
        self.reset_caches(server)
        self.post(server, "/resume")
        self.post(server, "/update_weight_version", {"new_version": self.version})  # by now all of it is in place

    def _start(self, server: Client) -> None:
        try:
            self.post(server, "/start_weight_update")
        except Unavailable:  # one that was cut off is still going on
            self.post(server, "/finish_weight_update")
            self.post(server, "/start_weight_update")
