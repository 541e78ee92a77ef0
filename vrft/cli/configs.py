"""`python -m vrft configs`: list, show and copy the configs in the package."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from vrft.cli.named_configs import CONFIGS, config_names, named_config
from vrft.cli.parser import Parser
from vrft.errors import ConfigurationError
from vrft.utils.display import shell_word

DESCRIPTION = """\
Without arguments, lists the configs of the package with one line each. `--config NAME` takes one in any folder; a file
of that name wins. Several can be combined, e.g. --config coco_few_shot --config trainer/ddp. `show NAME` prints one,
`copy NAME [DEST]` writes it to a file or a folder, with the parts that it names, so that you can edit it.
"""

PART = re.compile(r"^(\w+): (\w+/\w+\.yaml)$", re.M)
"""A field whose value is the path of another file in the package."""


def build_parser() -> Parser:
    """Return the parser of the command."""
    parser = Parser("configs", DESCRIPTION)
    parser.add_argument("action", nargs="?", default="list", choices=("list", "show", "copy"), help="what to do")
    parser.add_argument("name", nargs="?", metavar="NAME", help="name of a config")
    parser.add_argument("dest", nargs="?", type=Path, metavar="DEST", help="file or folder; default: NAME.yaml here")
    return parser


def main(args: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    arguments = build_parser().parse_args(args)
    if arguments.action == "list":
        print("\n".join(listing()))
    elif arguments.name is None:
        raise ConfigurationError(f"configs: {arguments.action} needs a NAME; `python -m vrft configs` lists them")
    elif arguments.action == "show":
        print(whole(arguments.name), end="")
    else:
        path = copy(arguments.name, arguments.dest)
        print(f"wrote {path}; pass it with --config {shell_word(str(path))}")
    return 0


def listing() -> Iterator[str]:
    """Yield the name and the first line of each config. Configs to combine with others come last."""
    names = sorted(config_names(), key=lambda name: ("/" in name, name))
    width = max(map(len, names)) + 2
    for name in names:
        first = named_config(name).read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        yield f"{name:<{width}}{first}"


def whole(name: str) -> str:
    """Return the text of a config, with the content of the files that it names inserted."""
    return PART.sub(lambda match: f"{match[1]}:\n{_part(match[2])}", named_config(name).read_text(encoding="utf-8"))


def _part(path: str) -> str:
    return textwrap.indent((CONFIGS / path).read_text(encoding="utf-8").rstrip(), "  ")


def copy(name: str, dest: Path | None) -> Path:
    """Copy a config to a new file, and return its path.

    Raises:
        ConfigurationError: no config has this name, or the file exists or can't be written.
    """
    source, path = named_config(name), dest or Path()
    if path.is_dir():
        path = path / source.name
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(re.sub(rf"--config {name}(?![\w/])", lambda _: f"--config {shell_word(str(path))}", whole(name)))
    except FileExistsError as error:
        raise ConfigurationError(f"configs: {path} exists already; name another file") from error
    except OSError as error:
        raise ConfigurationError(f"configs: can't write to {path}: {error.strerror}") from error
    return path
