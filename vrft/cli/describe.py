"""Describe the classes that a config may name, for `vrft.cli.field_names`."""

from __future__ import annotations

import inspect
import json
from importlib import import_module
from types import UnionType
from typing import Any, Union, get_args, get_origin

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.cli import LightningArgumentParser

from vrft.callbacks.checkpoint import RunCheckpoint
from vrft.callbacks.guards import Guards
from vrft.callbacks.skipped_steps import SkippedSteps
from vrft.callbacks.transcripts import Transcripts
from vrft.cli.field_names import GROUPS
from vrft.cli.parser_errors import class_names
from vrft.cli.trainer import CommandTrainer

MORE = ("vrft.LoRA", "vrft.data.difficulty.Difficulty", "vrft.training.strategies.FSDP2Strategy")


def describe_classes() -> str:
    """Return the parameter names of vrft's classes as JSON, the text of `vrft.cli.field_names.CLASSES`."""
    paths = sorted({*class_names().values(), *MORE})
    found = {path: getattr(import_module(path.rpartition(".")[0]), path.rpartition(".")[2]) for path in paths}
    classes = {path: cls for path, cls in found.items() if not inspect.isabstract(cls)}
    fixed = (CommandTrainer, RunCheckpoint, Transcripts, SkippedSteps, Guards)
    described = {path: _parameters(cls, classes) for path, cls in [*classes.items(), *zip(GROUPS, fixed, strict=True)]}
    lines = [f" {json.dumps(path)}: {json.dumps(names)}" for path, names in described.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _parameters(cls: type, classes: dict[str, type]) -> dict[str, str]:
    """Return the names of a class's parameters, with the kinds of values described at `CLASSES`."""
    parser = LightningArgumentParser()
    if issubclass(cls, Callback | Trainer):
        parser.add_lightning_class_args(cls, "x")
    else:
        parser.add_class_arguments(cls, "x")
    names = {action.dest.removeprefix("x."): action for action in parser._actions if action.dest.startswith("x.")}
    return {name: _held(action, classes) for name, action in names.items() if "." not in name}


def _held(action: Any, classes: dict[str, type]) -> str:
    hint = vars(action).get("_typehint")  # actions of plain types have none
    options = [hint, *(get_args(hint) if get_origin(hint) in (Union, UnionType) else ())]
    held = [path for path, cls in classes.items() if cls in options]
    many = any(get_origin(option) in (dict, list) for option in options)
    return held[0] if held else "*" if many else ""
