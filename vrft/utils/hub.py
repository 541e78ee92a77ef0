"""Errors of `from_pretrained` in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vrft.errors import ConfigurationError


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
