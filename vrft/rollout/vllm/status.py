"""Query a server's settings, models and version of the weights."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from vrft.rollout.vllm.client import Client
from vrft.utils.http_client import Refused, Unavailable

ResponseT = TypeVar("ResponseT")

STATUS_TIMEOUT = 20.0  # seconds


class ModelConfig(msgspec.Struct):
    """The section `model_config` of a server's configuration."""

    logprobs_mode: str
    enable_sleep_mode: bool = False


class DeviceConfig(msgspec.Struct):
    """The section `device_config` of a server's configuration."""

    device: Any


class SchedulerConfig(msgspec.Struct):
    """The section `scheduler_config` of a server's configuration."""

    enable_chunked_prefill: bool | None


class LoRAConfig(msgspec.Struct):
    """The section `lora_config` of a server's configuration."""

    max_lora_rank: int
    enable_tower_connector_lora: bool = False


class TransferConfig(msgspec.Struct):
    """The section `weight_transfer_config` of a server's configuration, the plugin that loads weights."""

    backend: str


class Config(msgspec.Struct):
    """The fields of a server's configuration that are used here."""

    model_config: ModelConfig
    device_config: DeviceConfig
    scheduler_config: SchedulerConfig
    lora_config: LoRAConfig | None
    weight_transfer_config: TransferConfig | None


class ServerInfo(msgspec.Struct):
    """Response of `/server_info`: how the server was started."""

    vllm_config: Config
    vllm_env: dict[str, Any]


class Reset(msgspec.Struct):
    """Response of `/reset_prefix_cache`."""

    success: bool


class Model(msgspec.Struct):
    """A model that requests can name. Adapters have a parent."""

    id: str
    parent: str | None = None


class Models(msgspec.Struct):
    """Response of `/v1/models`."""

    data: list[Model]


class WeightInfo(msgspec.Struct):
    """Response of `/weight_info`."""

    weight_version: str


class Sleeping(msgspec.Struct):
    """Response of `/is_sleeping`."""

    is_sleeping: bool


def model_names(server: Client) -> list[str]:
    """Return the names of the base model, then of the adapters."""
    listed = get_json(server, "/v1/models", Models)
    return [model.id for model in sorted(listed.data, key=lambda model: model.parent is not None)]


def weight_version(server: Client) -> str:
    """Return the name of the version of the weights on a server."""
    return get_json(server, "/weight_info", WeightInfo).weight_version


def is_sleeping(server: Client) -> bool:
    """Return whether a server is asleep, completely or partly."""
    return get_json(server, "/is_sleeping", Sleeping).is_sleeping


def get_json(server: Client, path: str, kind: type[ResponseT], timeout: float = STATUS_TIMEOUT) -> ResponseT:
    """Send a GET request and decode the response. Raise Unavailable if either fails."""
    try:
        return decode(server.request("GET", path, timeout=timeout), kind, server)
    except Refused as error:
        raise Unavailable(str(error)) from error


def decode(content: bytes, kind: type[ResponseT], server: Client) -> ResponseT:
    """Decode a response. Raise Unavailable if it does not have the type."""
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Unavailable(f"{server.url}: the response can't be read: {error}") from error
