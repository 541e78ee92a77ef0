"""Find a checkpoint by its name: a folder, a built-in policy or a model on the Hugging Face Hub."""

from __future__ import annotations

import difflib
from pathlib import Path

from vrft.errors import ConfigurationError
from vrft.policy.checkpoint_files import check_folder, is_small

BUILT_IN = Path(__file__).parent / "checkpoints"
HUB_TIMEOUT = 10.0  # seconds


def find_checkpoint(name: str) -> str:
    """Return the folder or Hub name that `from_pretrained` takes, after a quick check that it can be loaded.

    Raises:
        ConfigurationError: `name` is not a folder with a whole checkpoint, not a built-in policy and not found on the
            Hub.
    """
    if name in (path.name for path in BUILT_IN.iterdir()):
        return str(BUILT_IN / name)
    folder = Path(name).expanduser()
    if folder.exists():
        check_folder(folder)
        return str(folder)
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or folder.parent.exists():
        raise ConfigurationError(
            f"model.policy.checkpoint: no such folder, built-in policy or Hub model: {name!r}{_suggestion(folder)}; "
            f"expected a folder with config.json and safetensors, one of {_built_in_names()}, or a name like "
            "'Qwen/Qwen2-VL-2B-Instruct'"
        )
    _check_hub(name)
    return name


def _built_in_names() -> str:
    return ", ".join(sorted(path.name for path in BUILT_IN.iterdir() if path.is_dir()))


def _suggestion(folder: Path) -> str:
    siblings = [path.name for path in folder.parent.iterdir() if path.is_dir()] if folder.parent.exists() else []
    built_in = [path.name for path in BUILT_IN.iterdir()]
    close = difflib.get_close_matches(folder.name, siblings, n=1) or difflib.get_close_matches(
        folder.name, built_in, n=1
    )
    if not close:
        return ""
    return f" (did you mean {str(folder.parent / close[0]) if close[0] in siblings else close[0]!r}?)"


def _check_hub(name: str) -> None:
    """Ask the Hub for the model's config.json, once and without retries, unless it is in the cache.

    A typo or a machine without network then costs seconds.

    Raises:
        ConfigurationError: the model does not exist, is gated, or the Hub can't be reached.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError, HTTPError, RemoteEntryNotFoundError

    try:  # HTTPError: of httpx or httpx2, by its version
        if not isinstance(try_to_load_from_cache(name, "config.json"), str):
            get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=HUB_TIMEOUT)
    except RemoteEntryNotFoundError:
        check_hub_files(name)  # says what there is in place of config.json
    except (HFValidationError, HTTPError, OSError) as error:
        raise ConfigurationError(
            f"model.policy.checkpoint: {name!r} is not a folder here{_suggestion(Path(name))}, "
            f"and the Hugging Face Hub does not provide it: {' '.join(str(error).split())}"
        ) from error


def check_hub_files(name: str) -> None:
    """Check a model on the Hub as `check_folder` checks a folder, before its weights are downloaded.

    The list of its files is checked, and what the small ones contain. Without a connection, those in the cache are.

    Raises:
        ConfigurationError: the model is not a whole checkpoint that can be trained; the message names the file.
    """
    from huggingface_hub import model_info, snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import HTTPError

    if Path(name).exists():  # folders were checked when they were named
        return
    try:
        listed = [file.rfilename for file in model_info(name, timeout=HUB_TIMEOUT).siblings or ()]
    except (HTTPError, OSError):
        cached = try_to_load_from_cache(name, "config.json")
        if not isinstance(cached, str):
            raise
        folder, listed = str(Path(cached).parent), []
    else:
        folder = snapshot_download(name, allow_patterns=[file for file in listed if is_small(file)])
    Path(folder).mkdir(parents=True, exist_ok=True)  # is missing if no file is small
    try:
        check_folder(Path(folder), listed)
    except ConfigurationError as error:
        raise ConfigurationError(str(error).replace(folder, name)) from error
