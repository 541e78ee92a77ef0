"""The parser of configs: errors of one line, and values that never run as code."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NoReturn

from jsonargparse import set_parsing_settings
from lightning.pytorch.cli import LightningArgumentParser

from vrft.cli.functions import restrict_callables
from vrft.cli.parser_errors import shorten
from vrft.errors import ConfigurationError


def harden_parsing() -> None:
    """Set what jsonargparse may do with a value, for the whole process.

    A list of denied import paths, even an empty one, makes it refuse the modules that run commands or pickles. A
    `class_path` in a field of any type stays a mapping.
    """
    set_parsing_settings(
        omegaconf_absolute_to_relative_paths=True, import_path_denylist=[], instantiate_subclass_spec_in_any=False
    )


class ConfigParser(LightningArgumentParser):
    """Names the wrong field and what was expected in one line, instead of pages of usage."""

    def dump(self, *args: Any, **kwargs: Any) -> str:
        """Serialize a configuration without validating it again, which takes as long as parsing it."""
        if "skip_none" in kwargs:  # Lightning uses the deprecated name
            kwargs["skip_unset"] = kwargs.pop("skip_none")
        return super().dump(*args, **{"skip_validation": True} | kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise ConfigurationError(shorten(message, [action.dest for action in self._actions]))

    def _add_signature_parameter(self, container: Any, nested_key: str | None, param: Any, *a: Any, **kw: Any) -> None:
        """Add a parameter of a class, at any depth; a `Callable` takes nothing but a function of the user's."""
        param = replace(param, annotation=restrict_callables(param.annotation))
        super()._add_signature_parameter(container, nested_key, param, *a, **kw)
