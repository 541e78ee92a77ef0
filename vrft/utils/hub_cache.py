"""Find models on the Hugging Face Hub with a short timeout, or in its local cache."""

from __future__ import annotations

import warnings
from pathlib import Path
from urllib.parse import urlsplit

from vrft.errors import ConfigurationError

HUB_TIMEOUT = 10.0  # seconds


def ask_hub(field: str, name: str) -> tuple[list[str], str | None]:
    """Return the names of a model's files on the Hub, and its folder in the cache if the Hub does not answer.

    The Hub is asked once, without retries. If the cache is used, the list of files is empty, and a warning is shown.

    Args:
        field: the setting that names the model.
        name: the model.

    Raises:
        ConfigurationError: the Hub does not provide the model, and the cache does not contain it.
    """
    from huggingface_hub import model_info
    from huggingface_hub.errors import HFValidationError, HTTPError

    try:  # HTTPError is from httpx or httpx2, depending on the version
        return [file.rfilename for file in model_info(name, timeout=HUB_TIMEOUT).siblings or ()], None
    except (HFValidationError, HTTPError, OSError) as error:
        reason = hub_reason(error)
        folder = cached_folder(name)
        if folder is None:
            raise ConfigurationError(f"{field}: the Hugging Face Hub does not provide {name!r}: {reason}") from error
        warnings.warn(f"{field}: no answer about {name} from the Hub ({reason}); using {folder}", stacklevel=2)
        return [], folder


def cached_folder(name: str) -> str | None:
    """Return the folder in the cache with the latest files of a model on the Hub, or None."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, "config.json")
    return str(Path(config).parent) if isinstance(config, str) else None


def name_or_cached(field: str, name: str) -> str:
    """Return the argument for `from_pretrained`: `name`, or its folder in the cache if the Hub does not answer.

    Raises:
        ConfigurationError: the Hub does not provide the model, and the cache does not contain it.
    """
    return name if Path(name).exists() else ask_hub(field, name)[1] or name


def hub_reason(error: Exception) -> str:
    """Return the reason of a Hub error in one line, with the server's name if it did not answer."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # HTTPError is from httpx or httpx2

    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, HTTPError) and not isinstance(error, HfHubHTTPError):
        return f"{urlsplit(constants.ENDPOINT).netloc} can't be reached: {reason}"
    return reason
