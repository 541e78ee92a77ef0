"""Errors of `from_pretrained` in one line, and those that it only logs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vrft.errors import ConfigurationError

if TYPE_CHECKING:
    from torch import nn

WITH_REPORT: dict[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True}
"""Arguments of `from_pretrained` that make it return what `check_loaded` needs, too."""

NAMED_KEYS = 3
"""Weights that a message names; it counts the rest."""


@contextmanager
def loading(field: str, name: str, remedy: str = "vrft runs none of it") -> Iterator[None]:
    """Turn the errors that `from_pretrained` raises for a bad checkpoint into a ConfigurationError.

    Args:
        field: the setting that names the checkpoint.
        name: the checkpoint.
        remedy: what the message advises if the checkpoint comes with its own code.

    Raises:
        ConfigurationError: the checkpoint has no safetensors, lacks a file, or comes with its own code.
    """
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ConfigurationError(
            f"{field}: {name} brings Python code of its own, which would run with all your rights; {remedy}"
        ) from error
    except OSError as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigurationError(f"{field}: {name}: {reason} (weights have to be safetensors)") from error


def check_loaded(field: str, name: str, model: nn.Module, info: Mapping[str, Any], *, whole: bool = True) -> None:
    """Check that a checkpoint held exactly the weights of its model: transformers fills gaps with random numbers.

    Tied weights are not missing. Those that the model's class declares as ignorable are not unexpected, nor are
    buffers, which older versions of transformers saved.

    Args:
        field: the setting that names the checkpoint.
        name: the checkpoint.
        model: the model that `from_pretrained` returned with `WITH_REPORT`.
        info: what it returned next to the model.
        whole: refuse weights that the model does not have, too.

    Raises:
        ConfigurationError: a weight is missing, of another shape or unexpected.
    """
    where = f"{field}: {name}: the safetensors"
    if missing := info["missing_keys"]:
        raise ConfigurationError(f"{where} lack {_listed(missing)}; an incomplete download, or another model's config")
    if mismatched := info["mismatched_keys"]:
        shapes = [f"{key} ({_shape(found)}, expected {_shape(expected)})" for key, found, expected in mismatched]
        raise ConfigurationError(f"{where} have another shape than config.json says: {_listed(shapes)}")
    unexpected = {*info["unexpected_keys"]}.difference(key for key, _ in model.named_buffers())
    if whole and unexpected:
        raise ConfigurationError(f"{where} have weights that the model of config.json lacks: {_listed(unexpected)}")


def _listed(keys: Iterable[str]) -> str:
    ordered = sorted(keys)
    rest = len(ordered) - NAMED_KEYS
    return ", ".join(ordered[:NAMED_KEYS]) + (f" and {rest} more" if rest > 0 else "")


def _shape(sizes: Iterable[int]) -> str:
    return " x ".join(map(str, sizes)) or "a number"
