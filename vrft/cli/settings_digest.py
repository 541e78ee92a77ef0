"""Compute a digest of the settings that sampled answers and their scores depend on."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from vrft.utils.own_code import is_own_code
from vrft.utils.yaml_text import decode_yaml

IRRELEVANT = {
    "data": ("batch_size", "eval_batch_size", "num_workers", "on_bad_record", "on_missing_image"),
    "model": ("max_tokens_per_micro_batch",),
}
"""Settings, by section, that change neither answers nor scores."""


def settings_digest(parser: ArgumentParser, config: Namespace) -> str:
    """Return a digest of all relevant settings of model, task and data, and of the user's modules that they name."""
    full: dict[str, Any] = decode_yaml(parser.dump(config, skip_none=False))
    found = {name: full[name] for name in ("model", "task", "data", "seed_everything")}
    found["precision"] = full["trainer"]["precision"]
    for section, names in IRRELEVANT.items():
        settings = found[section].get("init_args") or {}  # absent for a class without arguments
        found[section]["init_args"] = {name: value for name, value in settings.items() if name not in names}
    modules = {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in _own_modules(found)}
    content = json.dumps([found, modules], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()


def _own_modules(value: Any) -> Iterator[Path]:
    """Yield the files of the user's modules that a config names by import paths."""
    if isinstance(value, dict | list):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _own_modules(entry)
    elif isinstance(value, str):
        parts = value.split(".")
        names = (".".join(parts[:length]) for length in range(len(parts) - 1, 0, -1))
        module = next((sys.modules[name] for name in names if name in sys.modules), None)
        file = None if module is None else module.__file__
        if file is not None and is_own_code(Path(file)):
            yield Path(file)
