"""Decode untrusted YAML, and encode YAML fast."""

from __future__ import annotations

from typing import Any

import yaml

MAX_VALUES = 100_000
"""Maximum number of values after expanding aliases. A kilobyte of text can expand to billions."""


NUMBERS = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("bool", "int", "float", "null"))
"""Tags of keys that can be written in several ways, e.g. 1 and 0x1."""


# libyaml is ten times as fast as the parser and the emitter of PyYAML, and limits the depth. jsonargparse uses it too.
_Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_BaseLoader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)


class UnboundedYAML(ValueError):
    """Raised if the aliases of a YAML text expand to too many values."""


class RepeatedKey(ValueError):
    """Raised if a mapping has a key twice, of which a parser would keep the last."""


def _check_keys(loader: Any, root: yaml.Node | None) -> None:
    """Refuse a mapping with a repeated key. Keys from a merge (`<<`) may be repeated."""
    seen, nodes = set[int](), [root]
    while nodes:
        node = nodes.pop()
        if not isinstance(node, yaml.CollectionNode) or id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            nodes += node.value
            continue
        lines: dict[Any, int] = {}
        for key, value in node.value:
            nodes += [key, value]
            if not isinstance(key, yaml.ScalarNode) or key.value == "<<":
                continue
            name = loader.construct_object(key) if key.tag in NUMBERS else key.value
            line = key.start_mark.line + 1
            if name in lines:
                raise RepeatedKey(f"line {line}: the key {key.value!r} is in line {lines[name]} already")
            lines[name] = line


def _load(text: str, loader_class: Any) -> Any:
    loader = loader_class(text)
    try:
        node = loader.get_single_node()
        _check_keys(loader, node)
        return None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()


def decode_yaml(text: str, *, as_text: bool = False) -> Any:
    r"""Decode YAML to plain values.

    Args:
        text: the YAML.
        as_text: keep all scalars as strings.

    Raises:
        ValueError: the text is not valid YAML, has a key twice, or its aliases expand without bounds. The message has
            the line and the reason, but quotes nothing of the text except the key.

    >>> decode_yaml("made: 2026-99-99")
    Traceback (most recent call last):
    ...
    ValueError: month must be in 1..12
    >>> decode_yaml("a: [secret\nb: 1\n")
    Traceback (most recent call last):
    ...
    ValueError: line 2: did not find expected ',' or ']' while parsing a flow sequence at line 1
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
        value = _load(text, _BaseLoader if as_text else _SafeLoader)
    except yaml.MarkedYAMLError as error:
        raise ValueError(_reason(error, text)) from None
    except ValueError:
        raise
    except (yaml.YAMLError, LookupError, ArithmeticError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(str(error)) from error  # a YAML error, or an error of a tag's constructor
    if "*" in text:
        check_expansion(value)
    return value


def _reason(error: yaml.MarkedYAMLError, text: str) -> str:
    """Return the line and the reason of an error, and the line where the mapping or list around it begins."""
    mark, context = error.problem_mark or error.context_mark, error.context_mark
    line = min(mark.line + 1 if mark else 1, max(len(text.splitlines()), 1))  # the end of the text may be a line below
    reason = f"line {line}: {error.problem or error.context}"
    if error.context and context and context.line + 1 != line:
        reason += f" {error.context} at line {context.line + 1}"
    return reason


def encode_yaml(value: Any, *, allow_unicode: bool = False) -> str:
    """Encode plain values as YAML, keeping the order of keys.

    Args:
        value: the values.
        allow_unicode: keep non-ASCII characters instead of escaping them.

    >>> print(encode_yaml({"b": [1, 0.5], "a": None}), end="")
    b:
    - 1
    - 0.5
    a: null
    """
    settings: dict[str, Any] = {"default_flow_style": False, "sort_keys": False, "allow_unicode": allow_unicode}
    try:
        return yaml.dump(value, Dumper=_Dumper, **settings)
    except UnicodeEncodeError:  # libyaml can't write lone surrogates, as in file names
        return yaml.dump(value, Dumper=yaml.SafeDumper, **settings)


def check_expansion(value: Any) -> None:
    """Check the number of values of a decoded text after expanding aliases.

    Raises:
        UnboundedYAML: there are more than `MAX_VALUES`, or an alias contains itself.
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
