"""Pass versions of the weights to vLLM servers, as the folder of an adapter or as a safetensors file.

Trainer and servers share a folder. The trainer writes a version to it and requests each server, over HTTP, to load it.
"""

from __future__ import annotations

import errno
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from vrft.errors import ConfigurationError, RolloutFailed, RolloutRefused
from vrft.policy import LoRA, Policy
from vrft.rollout.vllm.client import Client
from vrft.rollout.vllm.status import STATUS_TIMEOUT, Reset, ServerInfo, decode, model_names, weight_version
from vrft.utils.http_client import Refused, Unavailable

CACHE_RESET_ROUTES = ("/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache")
"""Routes that clear cached keys and values, processed images and image features of the old weights."""

FILE_NOT_FOUND_MESSAGES = ("No such file", "Cannot find any model weights")
"""Parts of a status 500 response from a server that does not see the weights."""

NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK)
"""Errors of file systems without locks, e.g. Lustre mounted without `flock`."""

ALREADY_LOADED_MESSAGE = "already been loaded"
"""Part of a status 400 response if an earlier request to load the adapter timed out but is still running."""


class Weights(ABC):
    """The current version of the weights, in a shared folder and on servers."""

    def __init__(self, folder: Path, run: str, timeout: float) -> None:
        """Start without a version.

        Args:
            folder: folder for files, which all servers must see under the same path.
            run: unique name of the run, which is part of the version names to distinguish runs.
            timeout: seconds for one request.
        """
        self.folder, self.run, self.timeout = folder, run, timeout
        self.number = -1

    @property
    def version(self) -> str:
        """Name of the current version."""
        return f"vrft-{self.run}-{self.number}"

    @property
    def path(self) -> Path:
        """Folder of the current version."""
        return self.folder / self.version

    @abstractmethod
    def check(self, server: Client, info: ServerInfo) -> None:
        """Raise ConfigurationError if a server's settings do not allow loading such weights."""

    @abstractmethod
    def write(self, policy: Policy, weights: dict[str, Tensor], folder: Path) -> None:
        """Write the weights of the current version to a folder."""

    def collect(self, policy: Policy) -> dict[str, Tensor]:
        """Return the weights in the current version."""
        return policy.trained_weights()

    @abstractmethod
    def is_current(self, server: Client) -> bool:
        """Return whether a server uses the current version."""

    @abstractmethod
    def push(self, server: Client) -> None:
        """Make a server load the current version. Raise Unavailable or Refused if it fails."""

    @abstractmethod
    def withdraw(self, server: Client) -> None:
        """Mark the current version as not loaded on a server, before it falls asleep."""

    @abstractmethod
    def restore_frozen(self, server: Client) -> None:
        """Restore the weights that versions lack on a server that has discarded its weights."""

    def model_name(self, base: str) -> str:
        """Return the model name for requests. `base` is the server's name for the base model."""
        return base

    def write_version(self, policy: Policy, first: bool) -> None:
        """Write the next version and delete the previous one. All ranks call this together; one with `first` writes.

        Raises:
            RolloutFailed: the files can't be written.
        """
        previous, self.number = self.path, self.number + 1
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
            shutil.rmtree(previous, ignore_errors=True)

    def remove(self, servers: Sequence[Client]) -> None:
        """Remove the files of the current version."""
        shutil.rmtree(self.path, ignore_errors=True)

    def update(self, server: Client) -> None:
        """Make a server load the current version, unless it has. A lock admits one process at a time.

        Raises:
            Unavailable: the server did not load the version; another attempt may succeed. This includes missing files,
                because shared folders may show new files late.
            RolloutRefused: the server refuses the first version, or does not see its files.
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
                    f"model.engine: {server.url} does not load the weights in {self.path}: {error}; does it see that "
                    "folder (model.engine.weights_dir)?"
                ) from error
            if not self.is_current(server):
                raise Unavailable(f"{server.url} does not use the weights that it has loaded ({self.version})")

    def _lock(self, server: Client) -> TextIO:
        import fcntl  # absent on Windows, where vLLM does not run

        name = "".join(c if c.isalnum() else "-" for c in server.url)
        try:
            lock = (self.folder / f"{name}.lock").open("w", encoding="utf-8")
            while True:
                with suppress(BlockingIOError):
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return lock
                if time.monotonic() > server.deadline:
                    raise Unavailable(f"{server.url}: another process is still updating its weights")
                time.sleep(0.05)
        except OSError as error:
            if error.errno in NO_LOCKS:
                raise RolloutRefused(
                    f"model.engine.weights_dir: the file system of {self.folder} has no locks ({error.strerror}): name "
                    "a folder on one that has, e.g. in /dev/shm if the servers run on this machine"
                ) from error
            raise RolloutFailed(f"model.engine.weights_dir: every rank has to see that folder: {error}") from error

    def post(self, server: Client, path: str, body: Mapping[str, Any] | None = None) -> bytes:
        return server.request("POST", path, body, timeout=self.timeout)

    def reset_caches(self, server: Client) -> None:
        """Clear a server's caches, whose content depends on the old weights."""
        for path in CACHE_RESET_ROUTES:
            response = self.post(server, path)
            if path == CACHE_RESET_ROUTES[0] and not decode(response, Reset, server).success:
                raise Unavailable(f"{server.url}{path}: the cache is in use")


def check_servable(lora: LoRA) -> None:
    """Refuse adapters that vLLM would misread, i.e. with several ranks or scales, DoRA or whole modules."""
    for name in ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save"):
        if getattr(lora, name):
            raise ConfigurationError(f"model.policy.lora.{name}: vLLM can't load such adapters; leave it out")


def is_final(error: Unavailable | Refused) -> bool:
    """Return whether loading the same weights again would fail again."""
    if isinstance(error, Refused):
        return ALREADY_LOADED_MESSAGE not in str(error)
    return any(text in str(error) for text in FILE_NOT_FOUND_MESSAGES)


class LoRAWeights(Weights):
    """Versions of adapters, each in a new folder and under a new name.

    Under the old name, a server would use caches of the adapter's old weights.
    """

    def __init__(self, *args: Any, rank: int, tower: bool) -> None:
        """Set the rank of the adapters, and whether the vision tower has adapters (`tower`)."""
        super().__init__(*args)
        self.rank, self.tower = rank, tower

    def model_name(self, base: str) -> str:
        return self.version

    def check(self, server: Client, info: ServerInfo) -> None:
        lora = info.vllm_config.lora_config
        if lora is None or not info.vllm_env.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING"):
            problem = "loads no adapters: start it with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"
        elif lora.max_lora_rank < self.rank:
            problem = f"loads adapters of rank up to {lora.max_lora_rank}: start it with --max-lora-rank {self.rank}"
        elif self.tower and not lora.enable_tower_connector_lora:
            problem = (
                "would silently ignore the vision tower's adapters: start it with --enable-tower-connector-lora, or "
                "train no adapters there (model.policy.lora.target_modules)"
            )
        else:
            return
        raise ConfigurationError(
            f"model.engine: {server.url} {problem} (`python -m vrft serve-command` prints the whole command)"
        )

    def write(self, policy: Policy, weights: dict[str, Tensor], folder: Path) -> None:
        from peft import PeftModel

        assert isinstance(policy.model, PeftModel)
        policy.model.save_pretrained(folder, state_dict=weights)

    def remove(self, servers: Sequence[Client]) -> None:
        deadline = time.monotonic() + STATUS_TIMEOUT
        for server in servers:
            with suppress(Unavailable, Refused):  # the server has ended, or restarted without the adapter
                self.post(server.with_deadline(deadline), "/v1/unload_lora_adapter", {"lora_name": self.version})
        super().remove(servers)

    def is_current(self, server: Client) -> bool:
        return self.version in model_names(server)

    def withdraw(self, server: Client) -> None:
        self._unload(server, self._loaded(server))

    def restore_frozen(self, server: Client) -> None:
        self.post(server, "/collective_rpc", {"method": "reload_weights"})  # from the checkpoint

    def push(self, server: Client) -> None:
        old = self._loaded(server)
        self.post(server, "/v1/load_lora_adapter", {"lora_name": self.version, "lora_path": str(self.path.resolve())})
        self._unload(server, old)
        self.reset_caches(server)

    def _loaded(self, server: Client) -> list[str]:
        return [name for name in model_names(server) if name.startswith(f"vrft-{self.run}-")]

    def _unload(self, server: Client, names: list[str]) -> None:
        for name in names:
            self.post(server, "/v1/unload_lora_adapter", {"lora_name": name})


class FullWeights(Weights):
    """Versions of all trained weights, each a safetensors file that the server's plugin loads while requests wait.

    A server without the plugin loads the folder in the same way as at its start.
    """

    def __init__(self, *args: Any, complete: bool = False) -> None:
        """Start without a version. `complete`: write all weights, for servers that discard theirs while they sleep."""
        super().__init__(*args)
        self.complete = complete
        self.has_plugin: dict[str, bool] = {}  # by server address

    def check(self, server: Client, info: ServerInfo) -> None:
        transfer = info.vllm_config.weight_transfer_config
        self.has_plugin[server.url] = transfer is not None and transfer.backend == "vrft"

    def collect(self, policy: Policy) -> dict[str, Tensor]:
        """Return the trained weights, or all for the first version, as another run may have changed frozen ones."""
        return policy.trained_weights(frozen=self.complete or self.number == 0)

    def write(self, policy: Policy, weights: dict[str, Tensor], folder: Path) -> None:
        unique = {value.data_ptr(): name for name, value in reversed(weights.items())}  # a tied head is saved once
        converted = {name: weights[name].to(policy.dtype).contiguous() for name in unique.values()}
        save_file(converted, folder / "model.safetensors")
        if not all(self.has_plugin.values()):
            policy.base.config.save_pretrained(folder)

    def is_current(self, server: Client) -> bool:
        return weight_version(server) == self.version

    def withdraw(self, server: Client) -> None:
        self.post(server, "/update_weight_version", {"new_version": "withdrawn"})

    def restore_frozen(self, server: Client) -> None:
        assert self.complete or self.number == 0  # the version has all weights

    def push(self, server: Client) -> None:
        self.post(server, "/pause?mode=keep")
        folder = str(self.path.resolve())
        if self.has_plugin[server.url]:
            self.post(server, "/init_weight_transfer_engine", {"init_info": {}})
            self._start(server)
            self.post(server, "/update_weights", {"update_info": {"path": f"{folder}/model.safetensors"}})
            self.post(server, "/finish_weight_update")
        else:
            self.post(server, "/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": folder}})
        self.reset_caches(server)
        self.post(server, "/resume")
        self.post(server, "/update_weight_version", {"new_version": self.version})  # last, once all else has succeeded

    def _start(self, server: Client) -> None:
        try:
            self.post(server, "/start_weight_update")
        except Unavailable:  # an interrupted update may still be open
            self.post(server, "/finish_weight_update")
            self.post(server, "/start_weight_update")
