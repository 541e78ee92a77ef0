"""Parser messages in one line, with what the user probably meant."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable, Iterator, Sequence

from vrft.errors import ConfigurationError
from vrft.utils.redact import redact

NAMES = re.compile(r"--([\w.]+)|class_path '([\w.]+)'|import path string: ([\w.]+)|[Oo]ption '([\w.]+)'")


def run_command(command: Callable[[Sequence[str]], int], args: Sequence[str]) -> int:
    """The exit code of a command: its own, or 2 after a message about what the user can mend."""
    try:
        return command(args)
    except ConfigurationError as error:
        print(f"vrft: {message_lines(error)}", file=sys.stderr)
        return 2


def message_lines(error: BaseException) -> str:
    """The message of an error: in one line, unless it is a list that we made."""
    text = redact(str(error))
    if isinstance(error, ConfigurationError):
        return "\n".join(" ".join(line.split()) for line in text.splitlines())
    return " ".join(text.split())


HINTS = {
    r"unrecognized arguments: [^-]\S*\.ya?ml": "a config is named by --config FILE",
    r"arguments are required: fit": "they stand in a config: --config FILE",
    r"is abstract$": "nothing says its class_path; is the name right?",
}
"""What is probably meant, by what the parser says."""

NOISE = re.compile(
    r"Does not validate against|Subtypes:|Errors:|Expected a <class 'NoneType'>|Given value|Subclass types expect|"
    r"Expected a path but|a class path \(str\)|a dict with|a dict without|Unexpected import path format|$"
)


def shorten(message: str, fields: Sequence[str]) -> str:
    """The field and the cause out of a parser's message, with what was probably meant.

    jsonargparse lists every type that a value might have had; what is wrong stands in the innermost line of the list.

    >>> shorten("unrecognized arguments: --trainer.max_step=3", ["trainer.max_steps"])
    "unrecognized arguments: --trainer.max_step=3 (did you mean 'trainer.max_steps'?)"
    """
    keys = re.findall(r'Parser key "([^"]+)":', message)[:1]
    keys += re.findall(r"NestedArg\(key='([^']+)'", message)[-1:] if keys else []
    where = ".".join(keys)
    causes: list[str] = []
    for line in message.splitlines():
        text = re.sub(r'^[\s-]*(Parser key "[^"]+":\s*)*', "", line)
        if NOISE.match(text):
            continue
        if causes and not line.lstrip().startswith("- "):
            causes[-1] += f" {text}"
        else:
            causes.append(text)
    cause = causes[0] if causes else " ".join(message.split())
    while (first := cause.partition(": ")[0]) in where.split("."):
        cause = cause[len(first) + 2 :]
    return f"{where}{': ' if where else ''}{cause}{_suggestion(message, cause, fields)}"


def find_user_error(error: BaseException) -> BaseException:
    """The ConfigurationError or parser message that `error` is or wraps; raises `error` itself if there is none."""
    for link in _chain(error):
        if isinstance(link, ConfigurationError) or type(link).__module__.startswith("omegaconf"):
            return link
    raise error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _suggestion(message: str, cause: str, fields: Sequence[str]) -> str:
    if "did you mean" in cause:
        return ""
    for said, hint in HINTS.items():
        if re.search(said, cause):
            return f" ({hint})"
    tops = {name.partition(".")[0] for name in fields}
    known = {name: name for name in fields} | class_names()
    for wrong in NAMES.findall(message):
        name = next(part for part in wrong if part)
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
    """Class paths of everything that can be named in a config, by short name and by path."""
    from vrft import data, evaluators, rewards, rollout, tasks

    paths = ["vrft.RFT", "vrft.SFT", "vrft.Policy"]
    homes = (data, evaluators, rewards, rollout, tasks)
    paths += [f"{home.__name__}.{name}" for home in homes for name in home.__all__]
    return {path.rpartition(".")[2]: path for path in paths} | {path: path for path in paths}
