"""What a server says of itself."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from vrft.rollout.vllm.client import Client, Refused, Unavailable

Kind = TypeVar("Kind")

STATUS_TIMEOUT = 20.0
"""Seconds that a server has to say what it has."""


class ModelConfig(msgspec.Struct):
    """Of the model."""

    logprobs_mode: str


class DeviceConfig(msgspec.Struct):
    """Of the device."""

    device: Any


class SchedulerConfig(msgspec.Struct):
    """Of the scheduler."""

    enable_chunked_prefill: bool | None


class LoRAConfig(msgspec.Struct):
    """Of adapters."""

    max_lora_rank: int
    enable_tower_connector_lora: bool = False


class TransferConfig(msgspec.Struct):
    """Of the plugin that takes weights over."""

    backend: str


class Config(msgspec.Struct):
    """What of a server's configuration matters here."""

    model_config: ModelConfig
    device_config: DeviceConfig
    scheduler_config: SchedulerConfig
    lora_config: LoRAConfig | None
    weight_transfer_config: TransferConfig | None


class ServerInfo(msgspec.Struct):
    """What `/server_info` says of how a server was started."""

    vllm_config: Config
    vllm_env: dict[str, Any]


class Reset(msgspec.Struct):
    """What `/reset_prefix_cache` says."""

    success: bool


class Model(msgspec.Struct):
    """A name that requests can use; adapters have a parent."""

    id: str
    parent: str | None = None


class Models(msgspec.Struct):
    """What `/v1/models` lists."""

    data: list[Model]


class WeightInfo(msgspec.Struct):
    """What `/weight_info` says."""

    weight_version: str


def model_names(server: Client) -> list[str]:
    """Names of the model and of its adapters; the model's is the first."""
    listed = get_json(server, "/v1/models", Models)
    return [model.id for model in sorted(listed.data, key=lambda model: model.parent is not None)]


def weight_version(server: Client) -> str:
    """The name of the weights that a server answers with."""
    return get_json(server, "/weight_info", WeightInfo).weight_version


def get_json(server: Client, path: str, kind: type[Kind], timeout: float = STATUS_TIMEOUT) -> Kind:
    """What a route says, if it is of that kind; raises Unavailable if it isn't, or nothing is said."""
    try:
        return decode(server.ask("GET", path, timeout=timeout), kind, server)
    except Refused as error:
        raise Unavailable(str(error)) from error


def decode(content: bytes, kind: type[Kind], server: Client) -> Kind:
    """An answer, if it is of that kind; raises Unavailable if it isn't."""
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Unavailable(f"{server.url}: an answer that can't be read: {error}") from error
