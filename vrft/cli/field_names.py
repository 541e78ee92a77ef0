"""Check the names of nested config fields without torch, using a file that lists the fields of vrft's classes.

Names below a class that is not in the file are left to the parser.
"""

from __future__ import annotations

import difflib
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from vrft.cli.argv import option_values
from vrft.cli.parser_errors import shorten
from vrft.errors import ConfigurationError
from vrft.utils.yaml_text import decode_yaml

CLASSES = Path(__file__).with_name("classes.json")
"""File with the parameter names of classes, written by `vrft.cli.describe.describe_classes`.

Each name maps to the class of its values if these need no `class_path`, to `*` for a list or a mapping, or to "".
"""

GROUPS = ("trainer", "checkpoint", "transcripts", "skipped_steps", "guards")
"""Top-level fields of a config with a fixed class."""

META = ("class_path", "init_args", "dict_kwargs", "help")

MAX_LISTED = 12
"""Maximum number of names that a message lists if none is similar."""

Fields = tuple[str, ...]
"""Path of a field, without `init_args`."""


class Source(NamedTuple):
    """A value of a field from a file or an option. `word` is the option."""

    path: Fields
    value: Any
    folder: Path
    word: str = ""
    file: str = ""


def check_names(options: Sequence[str]) -> None:
    """Check the names of fields in options and in the configs that options name.

    Raises:
        ConfigurationError: a class of vrft has no such parameter.
    """
    sources = [*_sources(options)]
    classes: dict[Fields, set[str]] = defaultdict(set)
    for source in sources:
        _collect(source.path, source.value, source.folder, classes)
    for source in sources:
        _Checker(classes, source).check((), {}, _nested(source.path, source.value), source.folder)


def _sources(options: Sequence[str]) -> Iterator[Source]:
    for config in option_values(options, "--config"):
        content = decode_yaml(Path(config).read_text(encoding="utf-8"))
        yield Source((), content or {}, Path(config).parent, file=config)
    for i, word in enumerate(options):
        name, equals, value = word.partition("=")
        if name.startswith("--") and name != "--config":
            following = options[i + 1] if i + 1 < len(options) else ""
            path = tuple(field for field in name.removeprefix("--").split(".") if field != "init_args")
            yield Source(path, _value(value if equals else following), Path(), word=word)


def _value(text: str) -> Any:
    """Return the mapping or list that an option's text encodes in YAML, or the text if it is neither."""
    try:
        return decode_yaml(text) if text.startswith(("{", "[")) else text
    except ValueError:
        return text


def _nested(path: Fields, value: Any) -> Any:
    for name in reversed(path):
        value = {name: value}
    return value


def _collect(path: Fields, value: Any, folder: Path, classes: dict[Fields, set[str]]) -> None:
    """Add the classes that a value names, by field path, to `classes`."""
    value, folder = _loaded(value, folder)
    if path and path[-1] == "class_path" and isinstance(value, str):
        classes[path[:-1]].add(value)
    elif isinstance(value, str) or (path and path[-1].endswith("+")):
        classes[_plain(path)].add(str(value))
    elif isinstance(value, dict):
        for name, entry in value.items():
            _collect(path if name == "init_args" else (*path, str(name)), entry, folder, classes)


def _plain(path: Fields) -> Fields:
    return tuple(name.rstrip("+") for name in path)


def _loaded(value: Any, folder: Path) -> tuple[Any, Path]:
    """Return the content and the folder of the YAML file that a value names, or the value and `folder`."""
    if isinstance(value, str) and value.endswith((".yaml", ".yml")):
        for path in (folder / value, Path(value)):
            if path.is_file():
                try:
                    return decode_yaml(path.read_text(encoding="utf-8")), path.parent
                except ValueError:
                    break
    return value, folder


class _Checker:
    """Checks the names in one source."""

    def __init__(self, classes: dict[Fields, set[str]], source: Source) -> None:
        self.classes, self.source = classes, source

    def check(self, path: Fields, expected: dict[str, str], value: Any, folder: Path) -> None:
        """Check the names in the value of a field.

        Args:
            path: the field.
            expected: parameters of the field's class, see `CLASSES`; empty: any.
            value: the value.
            folder: folder that relative paths in the value refer to.
        """
        value, folder = _loaded(value, folder)
        if not isinstance(value, dict):
            return
        if "init_args" in value:
            value = value["init_args"] if isinstance(value["init_args"], dict) else {}
        elif "class_path" in value:
            return
        for name, entry in value.items():
            plain = str(name).rstrip("+")
            if expected and plain not in expected and plain not in META:
                raise ConfigurationError(self._message((*path, plain), [*expected]))
            kind = expected.get(plain, "*") if path else plain if plain in GROUPS else ""
            self._check_below((*path, plain), kind, entry, folder)

    def _check_below(self, path: Fields, kind: str, value: Any, folder: Path) -> None:
        if kind == "*" and isinstance(value, list):
            for entry in value:
                if isinstance(entry, dict) and (named := _known(entry.get("class_path"))):
                    _Checker({}, self.source).check(path, named, entry, folder)
            return
        classes = [_known(name) for name in {*self.classes.get(path, ()), *([kind] if kind not in ("", "*") else [])}]
        if classes and all(classes):
            names = {name: held for each in classes if each for name, held in each.items()}
            self.check(path, names, value, folder)
        elif kind == "*" and not classes and isinstance(value, dict):
            for name, entry in value.items():
                self._check_below((*path, str(name)), "", entry, folder)

    def _message(self, path: Fields, names: Sequence[str]) -> str:
        source = self.source
        if source.word and len(path) == 2 and path[0] in GROUPS:
            return shorten(f"unrecognized arguments: {source.word}", [f"{path[0]}.{name}" for name in names])
        close = difflib.get_close_matches(path[-1], names, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        if not close and len(names) <= MAX_LISTED:
            hint = f" (expected one of {', '.join(names)})"
        where = f"{source.file}: " if source.file else ""
        return f"{where}{'.'.join(path)}: Option {path[-1]!r} is not accepted{hint}"


def _known(name: Any) -> dict[str, str]:
    """Return the parameters of a class, given its path or short name; empty if it is not in the file."""
    return _classes().get(name, {}) if isinstance(name, str) else {}


@cache
def _classes() -> dict[str, dict[str, str]]:
    classes: dict[str, dict[str, str]] = json.loads(CLASSES.read_text(encoding="utf-8"))
    return {path.rpartition(".")[2]: names for path, names in classes.items()} | classes
