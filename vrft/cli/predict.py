"""`python -m vrft predict`: apply `--images`, `--query` and an exported folder to the run's config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from vrft.data.splits import category_names
from vrft.errors import ConfigurationError
from vrft.run_dir import is_sharded


def use_images(config: Namespace) -> None:
    """Replace the config's data by the images and queries of the command line, so that its files need not exist.

    Without queries, the categories that the config names are asked for.

    Raises:
        ConfigurationError: there are queries but no images.
    """
    if config.images is None:
        if config.query is not None:
            raise ConfigurationError("query: expected --images too, the images to ask about")
        return
    if not config.images:
        raise ConfigurationError("images: expected files or folders")
    settings: dict[str, Any] = vars(config.data.init_args)
    queries = config.query
    if queries is None:
        named = settings.get("val_categories") or settings.get("categories")
        queries = category_names(named) if named else None
    if queries and settings.get("per_image"):
        queries = [", ".join(queries)]
    kept = {name: settings[name] for name in ("eval_batch_size", "num_workers", "allow_outside") if name in settings}
    config.data = Namespace(
        class_path="vrft.data.UnlabelledData",
        init_args=Namespace(images=config.images, queries=None if queries is None else [*queries], **kept),
    )


def use_exported_folder(config: Namespace) -> None:
    """Load the policy from `ckpt_path` if that is an exported folder.

    Raises:
        ConfigurationError: the folder holds no model.
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
