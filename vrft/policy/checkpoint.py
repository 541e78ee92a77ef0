"""Find a checkpoint by name: a folder, a built-in policy or a model on the Hugging Face Hub."""

from __future__ import annotations

import difflib
from os.path import exists, isdir
from pathlib import Path

from vrft.errors import ConfigurationError
from vrft.policy.checkpoint_files import FIELD, check_folder, is_small, weight_names
from vrft.utils.hub_cache import HUB_TIMEOUT, ask_hub, hub_reason

BUILT_IN = Path(__file__).parent / "checkpoints"


def find_checkpoint(name: str) -> str:
    """Return the folder or Hub name for `from_pretrained`, after a quick check that it can be loaded.

    Raises:
        ConfigurationError: `name` is neither a folder with a complete checkpoint, nor a built-in policy, nor a model on
            the Hub.
    """
    if not name:
        raise ConfigurationError("model.policy.checkpoint: is empty; expected the name of a folder or model")
    if name in (path.name for path in BUILT_IN.iterdir()):
        return str(BUILT_IN / name)
    folder = Path(name).expanduser()
    if exists(folder):  # `Path.exists` raises an error for names that are too long
        check_folder(folder)
        return str(folder)
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or exists(folder.parent):
        raise ConfigurationError(
            f"model.policy.checkpoint: no such folder, built-in policy or Hub model: {name[:200]!r}"
            f"{_suggestion(folder)}; expected a folder with config.json and safetensors, one of {_built_in_names()}, "
            "or a name like 'Qwen/Qwen2-VL-2B-Instruct'"
        )
    _check_hub(name)
    return name


def _built_in_names() -> str:
    return ", ".join(sorted(path.name for path in BUILT_IN.iterdir() if path.is_dir()))


def _suggestion(folder: Path) -> str:
    siblings = [path.name for path in folder.parent.iterdir() if path.is_dir()] if isdir(folder.parent) else []
    built_in = [path.name for path in BUILT_IN.iterdir()]
    close = difflib.get_close_matches(folder.name, siblings, n=1) or difflib.get_close_matches(
        folder.name, built_in, n=1
    )
    if not close:
        return ""
    return f" (did you mean {str(folder.parent / close[0]) if close[0] in siblings else close[0]!r}?)"


def _check_hub(name: str) -> None:
    """Ask the Hub for the model's config.json, once and without retries, unless it is in the cache.

    A typo or a missing network connection then costs only seconds.

    Raises:
        ConfigurationError: the model does not exist, is gated, or the Hub can't be reached.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError, HTTPError, RemoteEntryNotFoundError

    try:  # HTTPError: of httpx or httpx2, by its version
        if not isinstance(try_to_load_from_cache(name, "config.json"), str):
            get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=HUB_TIMEOUT)
    except RemoteEntryNotFoundError:
        checkpoint_folder(name)  # its error states what the model has instead of config.json
    except (HFValidationError, HTTPError, OSError) as error:
        raise ConfigurationError(
            f"model.policy.checkpoint: {name!r} is not a folder here{_suggestion(Path(name))}, "
            f"and the Hugging Face Hub does not provide it: {hub_reason(error)}"
        ) from error


def checkpoint_folder(name: str, code: bool = False) -> str:
    """Return the folder with a checkpoint's files, after checking and downloading those of a model on the Hub.

    The list of files and the small files are checked by `check_folder` before weights are downloaded. Without a
    connection, the folder in the cache is returned. Reading the folder needs no further requests to the Hub.

    Args:
        name: a folder or a model on the Hub.
        code: download Python code.

    Raises:
        ConfigurationError: the checkpoint is incomplete or can't be trained. The message names the file.
    """
    from huggingface_hub import snapshot_download

    if Path(name).exists():  # `find_checkpoint` has checked folders
        return name
    listed, cached = ask_hub(FIELD, name)
    wanted = [file for file in listed if is_small(file) or (code and file.endswith(".py"))]
    folder = Path(cached or snapshot_download(name, allow_patterns=wanted))
    folder.mkdir(parents=True, exist_ok=True)  # the folder is missing if no file is small
    try:
        check_folder(folder, listed)
        if cached is None:
            folder = Path(snapshot_download(name, allow_patterns=[*wanted, *weight_names(folder, listed)]))
            check_folder(folder)
    except ConfigurationError as error:
        raise ConfigurationError(str(error).replace(str(folder), name)) from error
    return str(folder)
