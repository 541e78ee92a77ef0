"""Shorten the messages of parsers to one line, and suggest corrections of misspelt names."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

from vrft.cli.own_classes import class_hint
from vrft.errors import ConfigurationError
from vrft.utils.display import visible
from vrft.utils.redact import redact

NAMES = re.compile(r"--([\w.-]+)|class_path '([\w.]+)'|import path string: ([\w.]+)|[Oo]ption '([\w.]+)'")


def run_command(command: Callable[[Sequence[str]], int], args: Sequence[str]) -> int:
    """Run a command and return its exit code. Print an error that the user can act on, and return its exit code."""
    try:
        return command(args)
    except ConfigurationError as error:
        print(f"vrft: {message_lines(error)}", file=sys.stderr)
        return 2
    except Exception as error:
        from vrft.cli.own_code import own_error

        if (said := own_error(error)) is None:
            raise
        print(f"vrft: {message_lines(ValueError(said))}", file=sys.stderr)
        return 1


def message_lines(error: BaseException) -> str:
    """Return the message of an error without secrets. Only a ConfigurationError may have several lines."""
    text = visible(redact(str(error)))
    if isinstance(error, ConfigurationError):
        return "\n".join(" ".join(line.split()) for line in text.splitlines())
    return " ".join(text.split())


HINTS = {
    r"unrecognized arguments: [^-]\S*\.ya?ml": "pass a config with --config FILE",
    r"arguments are required: (task|model|data)\b": "a config has them: --config NAME_OR_FILE",
    r"No module named 'kornia'": "augmentation needs `pip install 'kornia>=0.8'`",
    r"\.py, line \d+\)$": "a syntax error in your module",
    r"is abstract$": "no class_path is given; is the name right?",
    r"vrft\.checkpoint_io\b": "it is now vrft.training.checkpoint_io.AtomicCheckpointIO",
    r"vrft\.strategies\b": "it is now vrft.training.strategies.FSDP2Strategy",
    r"vrft\.policy\.segmenter\b": "it is now vrft.evaluators.SamSegmenter",
}
"""Patterns of the parser's messages, with hints."""

NOISE = re.compile(
    r"Does not validate against|Subtypes:|Errors:|Expected a <class 'NoneType'>|Given value|Subclass types expect|"
    r"Expected a path but|a class path \(str\)|a dict with|a dict without|Unexpected import path format|$"
)
"""Prefixes of lines that do not state the cause."""


def shorten(message: str, fields: Sequence[str]) -> str:
    """Extract the field and the cause from a message of jsonargparse, and suggest a correction.

    jsonargparse lists an error for every type that a value could have had. The cause is the innermost line.

    >>> shorten("unrecognized arguments: --trainer.max_step=3", ["trainer.max_steps"])
    "unrecognized arguments: --trainer.max_step=3 (did you mean 'trainer.max_steps'?)"
    >>> shorten("the following arguments are required: data", [])
    'the following arguments are required: data (a config has them: --config NAME_OR_FILE)'
    """
    field, cause = _field(message), _cause(message)
    while (first := cause.partition(": ")[0]) in field.split("."):
        cause = cause[len(first) + 2 :]
    return f"{field}{': ' if field else ''}{cause}{_suggestion(message, cause, fields)}"


def _field(message: str) -> str:
    """Return the path of the invalid field, or ""."""
    keys = re.findall(r'Parser key "([^"]+)":', message)[:1]
    keys += re.findall(r"NestedArg\(key='([^']+)'", message)[-1:] if keys else []
    return ".".join(keys)


def _cause(message: str) -> str:
    """Return the first entry of the message that states a cause, as one line."""
    causes: list[str] = []
    for line in message.splitlines():
        text = re.sub(r'^[\s-]*(Parser key "[^"]+":\s*)*(Not of type \w+: )?', "", line)
        if NOISE.match(text):
            continue
        if causes and not line.lstrip().startswith("- "):
            causes[-1] += f" {text}"
        else:
            causes.append(text)
    return causes[0] if causes else " ".join(message.split())


def find_user_error(error: BaseException) -> BaseException | None:
    """Return the ConfigurationError or OmegaConf error that `error` is or wraps, or None."""
    for link in _chain(error):
        if isinstance(link, ConfigurationError) or type(link).__module__.startswith("omegaconf"):
            return link
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _suggestion(message: str, cause: str, fields: Sequence[str]) -> str:
    if "did you mean" in cause or "lacks the method" in cause:
        return ""
    if (said := class_hint(message)) is not None:
        return said
    for pattern, hint in HINTS.items():
        if re.search(pattern, cause):
            return f" ({hint})"
    return did_you_mean(message, fields, class_names())


def did_you_mean(message: str, fields: Sequence[str], classes: Mapping[str, str] | None = None) -> str:
    """Return a suggestion for the first misspelt name in a message, or "".

    Args:
        message: message of a parser.
        fields: names of the parser's options, without leading dashes.
        classes: class paths by short or full name.
    """
    tops = {name.partition(".")[0] for name in fields}
    known = {name: name for name in fields} | dict(classes or {})
    for groups in NAMES.findall(message):
        name = next(group for group in groups if group)
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.75) or difflib.get_close_matches(
            name.rpartition(".")[2], known, n=1, cutoff=0.6
        )
        if close and close[0] != name:
            return f" (did you mean '{known[close[0]]}'?)"
        top, _, below = name.partition(".")
        if below and top not in tops and (close := difflib.get_close_matches(top, tops, n=1)):
            return f" (did you mean '{close[0]}.{below}'?)"
    return ""


def class_names() -> dict[str, str]:
    """Return the class paths that a config can name, keyed by short name and by full name."""
    from vrft import data, evaluators, rewards, tasks

    paths = ["vrft.RFT", "vrft.SFT", "vrft.Policy", "vrft.rollout.TransformersEngine", "vrft.rollout.VLLMServer"]
    packages = (data, evaluators, rewards, tasks)
    paths += [f"{package.__name__}.{name}" for package in packages for name in package.__all__]
    return {path.rpartition(".")[2]: path for path in paths} | {path: path for path in paths}
