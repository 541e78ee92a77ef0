"""Decoding of untrusted YAML, and fast encoding."""

from __future__ import annotations

from typing import Any

import yaml
from yaml.composer import Composer
from yaml.constructor import BaseConstructor

MAX_VALUES = 100_000
"""Values that aliases may expand to: a text of a kilobyte can stand for billions."""


NUMBERS = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("bool", "int", "float", "null"))
"""Types of keys that can be written in several ways, such as 1 and 0x1."""


_FastDumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
"""The dumper that libyaml makes ten times as fast, where PyYAML is built with it."""


class UnboundedYAML(ValueError):
    """The aliases of a YAML text stand for too many values."""


class RepeatedKey(ValueError):
    """A mapping has a key twice, of which a parser keeps the last."""


class _UniqueKeys(Composer, BaseConstructor):
    """Refuses mappings in which a key is written twice. Keys that a merge (`<<`) brings may be written again."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[Any, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value == "<<":
                continue
            value = self.construct_object(key) if key.tag in NUMBERS else key.value
            line = key.start_mark.line + 1
            if value in lines:
                raise RepeatedKey(f"line {line}: the key {key.value!r} is in line {lines[value]} already")
            lines[value] = line
        return node


class _Loader(_UniqueKeys, yaml.SafeLoader):
    """Builds plain values."""


class _TextLoader(_UniqueKeys, yaml.BaseLoader):
    """Builds plain values in which all scalars are strings."""


def decode_yaml(text: str, *, as_text: bool = False) -> Any:
    r"""Decode YAML to plain values only, or with `as_text` to strings instead of numbers, booleans and dates.

    Args:
        text: the YAML.
        as_text: keep all scalars as strings.

    Raises:
        ValueError: the text is not valid YAML, has a key twice, or its aliases expand without bounds. The message has
            a line and a reason, but no part of the text other than the key.

    >>> decode_yaml("made: 2026-99-99")
    Traceback (most recent call last):
    ...
    ValueError: month must be in 1..12
    >>> decode_yaml("a: [secret")
    Traceback (most recent call last):
    ...
    ValueError: line 1: expected ',' or ']', but got '<stream end>'
    >>> decode_yaml("a: 1\nb: 2\na: 3")
    Traceback (most recent call last):
    ...
    vrft.utils.yaml_text.RepeatedKey: line 3: the key 'a' is in line 1 already
    >>> decode_yaml("a: &a [*a]")
    Traceback (most recent call last):
    ...
    vrft.utils.yaml_text.UnboundedYAML: an alias contains itself
    """
    try:
        value = yaml.load(text, _TextLoader if as_text else _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ValueError(f"line {mark.line + 1 if mark else 1}: {error.problem or error.context}") from None
    except ValueError:
        raise
    except (yaml.YAMLError, LookupError, ArithmeticError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(str(error)) from error  # a YAML error, or one of a tag's constructor
    if "*" in text:
        check_expansion(value)
    return value


def encode_yaml(value: Any, *, allow_unicode: bool = False) -> str:
    """Encode plain values as YAML, with the keys in their order.

    Args:
        value: the values.
        allow_unicode: keep characters outside of ASCII instead of escaping them.

    >>> print(encode_yaml({"b": [1, 0.5], "a": None}), end="")
    b:
    - 1
    - 0.5
    a: null
    """
    settings: dict[str, Any] = {"default_flow_style": False, "sort_keys": False, "allow_unicode": allow_unicode}
    try:
        return yaml.dump(value, Dumper=_FastDumper, **settings)
    except UnicodeEncodeError:  # the lone surrogates of file names, which libyaml can't write
        return yaml.dump(value, Dumper=yaml.SafeDumper, **settings)


def check_expansion(value: Any) -> None:
    """Check how many values a decoded text stands for, with its aliases written out.

    Raises:
        UnboundedYAML: they are more than `MAX_VALUES`, or an alias contains itself.
    """
    sizes: dict[int, int] = {}

    def size(entry: Any) -> int:
        if not isinstance(entry, dict | list):
            return 1
        known = sizes.get(id(entry))
        if known == 0:
            raise UnboundedYAML("an alias contains itself")
        if known is None:
            sizes[id(entry)] = 0
            known = 1 + sum(map(size, entry.values() if isinstance(entry, dict) else entry))
            sizes[id(entry)] = known
        return known

    if size(value) > MAX_VALUES:
        raise UnboundedYAML(f"its aliases stand for more than {MAX_VALUES} values")
