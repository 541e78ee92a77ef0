"""Check a parsed config before anything is instantiated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import Any

from jsonargparse import Namespace

from vrft.errors import ConfigurationError
from vrft.utils.yaml_text import decode_yaml

TRUST = "trust_remote_code"
TRUST_FIELDS = ("model", "policy", TRUST)


def check_trust(config: Namespace, args: Sequence[str]) -> None:
    """Check that permission to run a checkpoint's own code comes from the command line and not from a file.

    Raises:
        ConfigurationError: the permission comes from a file.
    """
    if config.get(f"model.init_args.policy.init_args.{TRUST}") and not permits_code(args):
        raise ConfigurationError(untrusted(f"--model.policy.{TRUST}=true"))


def check_seed(seed: object) -> None:
    """Check the run's seed, whose type is Lightning's.

    Raises:
        ConfigurationError: the seed is negative or too large.
    """
    if not isinstance(seed, bool | NoneType) and not (isinstance(seed, int) and 0 <= seed < 2**32):
        raise ConfigurationError(f"seed_everything: expected a whole number from 0 to {2**32 - 1}, got {seed}")


def permits_code(args: Sequence[str]) -> bool:
    """Return the last value of the policy's `trust_remote_code` in the options, without reading files.

    >>> permits_code(["fit", "--model.policy.trust_remote_code=true"])
    True
    >>> permits_code(["fit", "--model.policy", "{init_args: {trust_remote_code: true}}"])
    True
    >>> permits_code(["fit", "--model.policy.trust_remote_code=true", "--model.policy.trust_remote_code=false"])
    False
    >>> permits_code(["fit", "--config=trust_remote_code.yaml", "--run_dir", "trust_remote_code"])
    False
    """
    permitted = False
    for number, option in enumerate(args):
        name, equals, value = option.partition("=")
        fields = [field for field in name.removeprefix("--").split(".") if field != "init_args"]
        if not name.startswith("--") or fields != [*TRUST_FIELDS[: len(fields)]]:
            continue
        text = value if equals else args[number + 1] if number + 1 < len(args) else ""
        found = _value_at(text, TRUST_FIELDS[len(fields) :])
        permitted = permitted if found is None else found is True
    return permitted


def _value_at(text: str, fields: Sequence[str]) -> Any:
    """Return the value of a field in a YAML text, or None."""
    try:
        content = decode_yaml(text)
    except ValueError:
        return None
    for field in fields:
        if not isinstance(content, dict):
            return None
        content = content.get("init_args", content)
        content = content.get(field) if isinstance(content, dict) else None
    return content


def untrusted(option: str) -> str:
    """Return the message for a config that permits a checkpoint's own code. `option`: the option to use instead."""
    return (
        f"model.policy.{TRUST}: only the command line can permit code that comes with a checkpoint, not a file; if you "
        f"trust it, add {option}"
    )


def resolve_checkpoints(config: Namespace) -> None:
    """Replace `ckpt_path: last` and `best` by their paths, and check that the checkpoints exist.

    Raises:
        ConfigurationError: a checkpoint does not exist.
    """
    if config.ckpt_path in ("last", "best"):
        config.ckpt_path = str(Path(config.checkpoint.dirpath) / f"{config.ckpt_path}.ckpt")
    against = config.get("against")  # an option of `test` only
    for field, path in (("ckpt_path", config.ckpt_path), ("against", None if against == "base" else against)):
        if path is not None and not Path(path).exists():
            hint = "; it is written if checkpoint.monitor is set" if Path(path).name == "best.ckpt" else ""
            named = Path(config.checkpoint.dirpath) / f"{Path(path).stem}.ckpt"
            if named.exists():
                hint = f" (did you mean {named}?)"
            kind = "results file" if Path(path).suffix == ".json" else "checkpoint"
            raise ConfigurationError(f"{field}: no such {kind}: {path}{hint}")
