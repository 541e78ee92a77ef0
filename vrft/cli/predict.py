"""`python -m vrft predict`: apply `--images`, `--query` and an exported folder to the run's config."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.utilities import rank_zero_info

from vrft.cli.config_parser import ConfigParser
from vrft.cli.parser_errors import find_user_error
from vrft.data import VisionData
from vrft.data.categories import CategoryData
from vrft.data.splits import category_names
from vrft.errors import ConfigurationError
from vrft.run_dir import RunDir, is_sharded

KEPT = ("eval_batch_size", "num_workers", "allow_outside", "image_bits", "per_image")
"""Settings of the config's data that also apply to other images."""


def keep_others_predictions(config: Namespace) -> None:
    """Raise ConfigurationError if predictions of the base would replace those of other weights, e.g. a tuned model."""
    path = RunDir(Path(config.run_dir)).predictions
    if config.ckpt_path is not None or not path.is_file():
        return
    with path.open(encoding="utf-8") as file:
        first = file.readline()
    weights = json.loads(first).get("weights") if first.strip() else None
    base = str(Path(config.model.init_args.policy.init_args.checkpoint).expanduser())
    if weights not in (None, base):
        raise ConfigurationError(
            f"ckpt_path: none is given, so the base ({base}) would answer and replace {path}, those of {weights}; "
            "pass --ckpt_path last for the tuned model, or another --run_dir for the base's answers"
        )


def use_images(config: Namespace) -> None:
    """Replace the config's data by the images and queries of the command line, so that its files need not exist.

    Without queries, ask for the categories in the config, or else for all categories of its data.

    Raises:
        ConfigurationError: there are queries but no images, or neither queries nor readable categories.
    """
    if config.images is None:
        if config.query is not None:
            raise ConfigurationError("query: expected --images too, the images to ask about")
        return
    if config.split == "test":
        raise ConfigurationError("split: --images are asked about, so no split is; remove one of the two")
    if not config.images:
        raise ConfigurationError("images: expected files or folders")
    settings: dict[str, Any] = vars(config.data.init_args)
    queries = config.query
    if queries is None and has_query(config.task):
        queries = categories_of(config.data)
    if settings.get("examples"):
        raise ConfigurationError(
            f"data.examples={settings['examples']}: images of --images can't be asked about with examples, which are "
            "training images; expected --data.examples=0"
        )
    kept = {name: settings[name] for name in KEPT if name in settings}
    config.data = Namespace(
        class_path="vrft.data.UnlabelledData",
        init_args=Namespace(images=config.images, queries=None if queries is None else [*queries], **kept),
    )


def has_query(task: Namespace) -> bool:
    """Return whether a task's question contains the query."""
    module, _, name = task.class_path.rpartition(".")
    prompt: str = getattr(import_module(module), name).prompt
    return "{query}" in (task.init_args.get("template") or prompt)


def categories_of(data: Namespace) -> Sequence[str] | None:
    """Return the categories in the config, or else all categories of its data; None if it has no categories.

    Raises:
        ConfigurationError: the config names no categories, and the data's files can't be read.
    """
    if named := data.init_args.get("val_categories") or data.init_args.get("categories"):
        return category_names(named)
    parser = ConfigParser()
    parser.add_subclass_arguments(VisionData, "data")
    try:
        source = parser.instantiate(Namespace(data=data)).data
        if not isinstance(source, CategoryData):
            return None
        found = source.file_categories()
    except ValueError as error:  # the parser wraps errors of the constructor
        if (reason := find_user_error(error)) is None:
            raise
        raise ConfigurationError(f"query: expected e.g. --query cat, or the config's data to read: {reason}") from error
    if not found:
        raise ConfigurationError("query: expected e.g. --query cat; the config's data has no categories")
    rank_zero_info(f"query: asking about the categories of the data: {', '.join(found)}")
    return found


def use_exported_folder(config: Namespace) -> None:
    """Make the config load the policy from `ckpt_path` if it is an exported folder.

    Raises:
        ConfigurationError: the folder has no model.
    """
    folder = None if config.ckpt_path is None else Path(config.ckpt_path)
    if folder is None or not folder.is_dir() or is_sharded(folder):
        return
    if not (folder / "config.json").exists():
        what = "is not the folder of a model: it has no config.json"
        if (folder / "adapter_config.json").exists():
            what = "holds an adapter without its base; expected the merged folder above it"
        raise ConfigurationError(f"ckpt_path: {folder} {what}")
    config.model.init_args.policy.init_args.checkpoint = str(folder)
    config.ckpt_path = None
