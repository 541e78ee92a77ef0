"""Turn errors of `from_pretrained`, including those that it only logs, into one-line errors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub.errors import StrictDataclassError

from vrft.errors import ConfigurationError
from vrft.utils.interrupts import repeated_interrupts
from vrft.utils.out_of_memory import is_out_of_memory

if TYPE_CHECKING:
    from torch import Tensor, nn

LOADING_ERRORS_WITH_CODE = (ValueError, OSError)
LOADING_ERRORS = (
    *LOADING_ERRORS_WITH_CODE,
    StrictDataclassError,
    TypeError,
    LookupError,
    AttributeError,
    ImportError,
    RuntimeError,
    ArithmeticError,
    AssertionError,
)
"""Errors that transformers raises for invalid files of a checkpoint."""

WITH_REPORT: dict[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True}
"""Arguments that make `from_pretrained` also return the report that `check_loaded` needs."""

LARGE_BYTES = 2**30
"""Minimum bytes of weights for a progress bar."""

MESSAGE_CHARACTERS = 300
"""Maximum number of characters of a message of transformers, which may contain long lists."""

NAMED_KEYS = 3
"""Maximum number of weights that a message names; the rest are only counted."""


@contextmanager
def loading(
    field: str,
    name: str,
    remedy: str = "vrft runs none of it",
    trusts_code: bool = False,
    *,
    what: str = "load it",
) -> Iterator[None]:
    """Turn errors that transformers raises for an invalid checkpoint into a one-line ConfigurationError.

    Ctrl-C ends downloads.

    Args:
        field: the setting that names the checkpoint.
        name: the checkpoint.
        remedy: advice in the message if the checkpoint needs its own code.
        trusts_code: whether that code may run; its errors then keep their tracebacks.
        what: the task of transformers, for the message.

    Raises:
        ConfigurationError: the checkpoint can't be loaded, or needs its own code.
    """
    try:
        with fitting_in_memory(field, name), repeated_interrupts():
            yield
    except ConfigurationError:
        raise
    except Exception as error:
        expected = LOADING_ERRORS_WITH_CODE if trusts_code else LOADING_ERRORS
        if not isinstance(error, expected) and type(error) is not Exception:  # tokenizers raises plain Exceptions
            raise
        if "trust_remote_code" in str(error):
            reason = f"brings Python code of its own, which would run with all your rights; {remedy}"
            raise ConfigurationError(f"{field}: {name} {reason}") from error
        raise ConfigurationError(f"{field}: {name}: transformers can't {what}: {_shortened(error)}") from error


@contextmanager
def fitting_in_memory(field: str, name: str) -> Iterator[None]:
    """Turn out-of-memory errors while loading a model into a one-line ConfigurationError.

    Args:
        field: the setting that names the checkpoint.
        name: the checkpoint.

    Raises:
        ConfigurationError: memory runs out.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        advice = "LoRA, another dtype or FSDP2 need less, see docs/memory_and_speed.md"
        raise ConfigurationError(
            f"{field}: {name}: out of memory while weights are read: {_shortened(error)}; {advice}"
        ) from error


@contextmanager
def bars_if_large(checkpoint: str) -> Iterator[None]:
    """Hide transformers' progress bars while it reads or writes a checkpoint, unless the checkpoint is large."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    size = sum(path.stat().st_size for path in Path(checkpoint).glob("*.safetensors"))
    if 0 < size < LARGE_BYTES:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _shortened(error: Exception) -> str:
    return " ".join(str(error).split())[:MESSAGE_CHARACTERS] or type(error).__name__


def check_loaded(field: str, name: str, model: nn.Module, info: Mapping[str, Any], *, whole: bool = True) -> None:
    """Check that a checkpoint had exactly the weights of its model, since transformers fills gaps with random numbers.

    Also check that all values are finite: others would make every answer meaningless, without an error.

    Tied weights don't count as missing. Weights that the model's class declares as ignorable don't count as unexpected,
    nor do buffers, which older versions of transformers saved.

    Args:
        field: the setting that names the checkpoint.
        name: the checkpoint.
        model: the model that `from_pretrained` returned with `WITH_REPORT`.
        info: the report that `from_pretrained` returned.
        whole: also refuse weights that the model does not have.

    Raises:
        ConfigurationError: a weight is missing or unexpected, has another shape, or has values that are not finite.
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
    if broken := [key for key, parameter in model.named_parameters() if not _is_finite(parameter)]:
        raise ConfigurationError(f"{where} have infinite or undefined values in {_listed(broken)}; download them again")


def _is_finite(parameter: Tensor) -> bool:
    """Return whether all values are finite. Parameters without values or in four bits count as finite."""
    if parameter.is_meta or not parameter.is_floating_point() or parameter.numel() == 0:
        return True
    return all(map(math.isfinite, parameter.detach().aminmax()))  # 50 times as fast as `isfinite`


def _listed(keys: Iterable[str]) -> str:
    ordered = sorted(keys)
    rest = len(ordered) - NAMED_KEYS
    return ", ".join(ordered[:NAMED_KEYS]) + (f" and {rest} more" if rest > 0 else "")


def _shape(sizes: Iterable[int]) -> str:
    return " x ".join(map(str, sizes)) or "a number"
