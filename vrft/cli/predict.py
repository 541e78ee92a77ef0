"""`python -m vrft predict --images …`: the words on the command line, and what they change in a run's config."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from vrft.data.splits import category_names
from vrft.errors import ConfigurationError
from vrft.utils.yaml_text import decode_yaml

LISTS, FLAG = ("--images", "--query"), "--draw"


def normalise_argv(args: Sequence[str]) -> list[str]:
    """Arguments in the parser's form: all words behind --images or --query are a list, and --draw alone is true.

    >>> normalise_argv(["predict", "--images", "a.png", "b.png", "--query=no: 1", "--draw"])
    ['predict', '--images=["a.png", "b.png"]', '--query=["no: 1"]', '--draw=true']
    """
    if not args or args[0] != "predict":
        return list(args)
    words, gathered = list(args), []
    lists: dict[str, list[str]] = {}
    while words:
        name, given, value = words.pop(0).partition("=")
        if name in LISTS:
            values = _listed(value) if given else []
            while not given and words and not words[0].startswith("--"):
                values.append(words.pop(0))
            if name not in lists:
                gathered.append(name)  # what all of its occurrences say comes at the first
            lists.setdefault(name, []).extend(values)
        elif name == FLAG and not given:
            gathered.append(f"{FLAG}=true")
        else:
            gathered.append(f"{name}{given}{value}")
    return [f"{word}={json.dumps(lists[word])}" if word in lists else word for word in gathered]


def _listed(value: str) -> list[str]:
    """The entries of a list in YAML; any other value is one."""
    try:
        found = decode_yaml(value, as_text=True) if value.startswith("[") else None
    except ValueError:
        found = None
    return found if isinstance(found, list) and all(isinstance(entry, str) for entry in found) else [value]


def use_images(config: Namespace) -> None:
    """Put images and queries in the place of the config's data, so that none of its files has to be there.

    Without queries, the categories that the config names are asked for.

    Raises:
        ConfigurationError: there are queries and no images.
    """
    if config.images is None:
        if config.query is not None:
            raise ConfigurationError("query: expected --images, which it is asked of")
        return
    if not config.images:
        raise ConfigurationError("images: expected files or folders")
    before: dict[str, Any] = vars(config.data.init_args)
    queries = config.query
    if queries is None:
        named = before.get("val_categories") or before.get("categories")
        queries = category_names(named) if named else None
    if queries and before.get("per_image"):
        queries = [", ".join(queries)]
    settings = {name: before[name] for name in ("eval_batch_size", "num_workers") if name in before}
    config.data = Namespace(
        class_path="vrft.data.UnlabelledData",
        init_args=Namespace(images=config.images, queries=None if queries is None else [*queries], **settings),
    )


def use_exported_folder(config: Namespace) -> None:
    """Let `ckpt_path` be an exported folder: it is then the policy's checkpoint.

    Raises:
        ConfigurationError: the folder is no such thing.
    """
    folder = None if config.ckpt_path is None else Path(config.ckpt_path)
    if folder is None or not folder.is_dir():
        return
    if not (folder / "config.json").exists():
        what = "an adapter alone; the merged folder above it goes" if (folder / "adapter_config.json").exists() else ""
        raise ConfigurationError(f"ckpt_path: {folder} is {what or 'no folder of a model: it has no config.json'}")
    config.model.init_args.policy.init_args.checkpoint = str(folder)
    config.ckpt_path = None
