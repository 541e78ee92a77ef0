"""Upload an exported folder to the Hugging Face Hub. The checks run before the export, which takes long."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
)  # HTTPError: of httpx or httpx2
from huggingface_hub.utils import validate_repo_id

from vrft.errors import ConfigurationError
from vrft.utils.hub_cache import hub_reason
from vrft.utils.redact import PLACEHOLDER
from vrft.utils.yaml_text import decode_yaml

FIELD = "export: --push"

ADVICE = re.compile(r"For more information check: \S+")
"""Suffix of httpx's messages with the address of a page about the status code."""

OUTDATED = ["model*.safetensors", "model.safetensors.index.json", "adapter_model*.safetensors", "adapter_config.json"]
"""Files of an earlier upload that `from_pretrained` would prefer to the new files."""


def check_name(name: str) -> None:
    """Raise ConfigurationError for an invalid name of a repository on the Hub. Needs no network."""
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ConfigurationError(f"{FIELD}: expected NAME or OWNER/NAME: {error}") from error


def check_output(folder: Path) -> None:
    """Raise ConfigurationError if a folder has files other than an export, which would be uploaded too."""
    if folder.is_dir() and any(folder.iterdir()) and not _is_export(folder):
        raise ConfigurationError(
            f"{FIELD}: --output: {folder} holds other files, and the folder is uploaded as a whole; expected a new or "
            "empty folder, or one that `export` wrote"
        )


def _is_export(folder: Path) -> bool:
    card = folder / "README.md"
    if not card.is_file():
        return False
    _, _, front = card.read_text(encoding="utf-8", errors="replace").partition("---\n")
    try:
        about = decode_yaml(front.partition("\n---")[0])
    except ValueError:
        return False
    return isinstance(about, dict) and "vrft" in (about.get("tags") or ())


def full_name(name: str) -> str:
    """Return a repository's name with its owner, by default the owner of the token.

    Raises:
        ConfigurationError: there is no valid token, or the Hub can't be reached.
    """
    with _one_line():
        user = HfApi().whoami()["name"]
    return name if "/" in name else f"{user}/{name}"


def create_repository(name: str, private: bool) -> str:
    """Create a repository on the Hub unless it exists, and return its address.

    Raises:
        ConfigurationError: the repository can't be created, the token does not permit writing to it, or it is public
            although `private` is set.
    """
    with _one_line():
        address = str(HfApi().create_repo(name, private=private or None, exist_ok=True))
        HfApi().auth_check(name, write=True)
        public = not HfApi().model_info(name).private
    if private and public:
        raise ConfigurationError(f"{FIELD}: --private: {address} exists and is public")
    return address


def upload(folder: Path, name: str) -> None:
    """Upload a folder, and delete the weights of an earlier upload that it does not replace.

    Raises:
        ConfigurationError: the upload fails.
    """
    with _one_line(f"; {folder} is complete, and `hf upload {name} {folder}` uploads it"):
        HfApi().upload_folder(
            repo_id=name, folder_path=folder, delete_patterns=OUTDATED, commit_message="Upload an export of vrft"
        )


@contextmanager
def _one_line(hint: str = "") -> Iterator[None]:
    """Turn an error of the Hub or the network into a one-line ConfigurationError without the token."""
    try:
        yield
    except LocalTokenNotFoundError as error:
        raise ConfigurationError(
            f"{FIELD}: no token of the Hugging Face Hub; set HF_TOKEN or run `hf auth login`"
        ) from error
    except (HTTPError, OSError, RuntimeError) as error:  # RuntimeError: from hf_xet, which transfers large files
        text = " ".join(ADVICE.sub("", hub_reason(error)).split())
        if token := get_token():
            text = text.replace(token, PLACEHOLDER)
        if isinstance(error, HTTPError) and not isinstance(error, HfHubHTTPError):  # the server did not answer
            text += "; the upload is not complete" if hint else "; nothing was uploaded"
        raise ConfigurationError(f"{FIELD}: {text}{hint}") from error
