"""Loading from a folder or the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vrft.errors import ConfigurationError


@contextmanager
def loading(field: str, name: str, remedy: str = "vrft runs none of it") -> Iterator[None]:
    """Around `from_pretrained`: what is wrong with a checkpoint, in one line. `remedy`: where it brings its own code.

    Raises:
        ConfigurationError: it has no safetensors, lacks a file, or brings code of its own.
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
