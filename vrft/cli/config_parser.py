"""The parser of configs, which raises one-line errors and never runs values as code."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn

from jsonargparse import set_dumper, set_parsing_settings
from lightning.pytorch.cli import LightningArgumentParser

from vrft import data, evaluators
from vrft.cli.bounded_types import bound_numbers
from vrft.cli.functions import restrict_callables
from vrft.cli.parser_errors import shorten
from vrft.errors import ConfigurationError
from vrft.utils.redact import redact_settings
from vrft.utils.yaml_text import decode_yaml, encode_yaml


def harden_parsing() -> None:
    """Restrict what jsonargparse may do with a value, for the whole process.

    A list of denied import paths, even an empty one, makes jsonargparse refuse modules that run commands or pickles. A
    `class_path` in a field of type Any stays a mapping. For speed, its default logger, which has no output but creates
    hundreds of records per parse, is disabled, and its dumper is replaced by a fast one.
    """
    logging.getLogger("jsonargparse_null_logger").disabled = True
    set_dumper("yaml", partial(encode_yaml, allow_unicode=True))
    set_parsing_settings(
        omegaconf_absolute_to_relative_paths=True, import_path_denylist=[], instantiate_subclass_spec_in_any=False
    )


def import_classes() -> None:
    """Import the classes that packages import lazily, because the parser finds short names only of imported classes."""
    for package in (data, evaluators):
        for name in package.__all__:
            getattr(package, name)


@contextmanager
def hiding_secrets() -> Iterator[None]:
    """Hide secrets in what `--print_config` prints in the block."""
    printed = io.StringIO()
    try:
        with redirect_stdout(printed):
            yield
    finally:
        text = printed.getvalue()
        settings = decode_yaml(text)
        hidden = redact_settings(settings)
        print(text if hidden == settings else encode_yaml(hidden), end="")


class ConfigParser(LightningArgumentParser):
    """Reports the invalid field and what was expected in one line, instead of the usage."""

    def dump(self, *args: Any, **kwargs: Any) -> str:
        """Serialise a config without validating it again, which takes as long as parsing."""
        if "skip_none" in kwargs:  # Lightning uses the deprecated name
            kwargs["skip_unset"] = kwargs.pop("skip_none")
        return super().dump(*args, **{"skip_validation": True} | kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise ConfigurationError(shorten(message, [action.dest for action in self._actions]))

    def _add_signature_parameter(self, container: Any, nested_key: str | None, param: Any, *a: Any, **kw: Any) -> None:
        """Add a parameter of a class, at any depth, with a type that restricts functions and numbers."""
        annotation = bound_numbers(restrict_callables(param.annotation), param.default)
        param = replace(param, annotation=annotation)
        super()._add_signature_parameter(container, nested_key, param, *a, **kw)
