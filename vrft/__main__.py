"""Entry point of `python -m vrft` and `vrft`. Help and usage errors are printed without importing torch."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib import import_module
from io import TextIOWrapper
from typing import NoReturn

COMMANDS = ("fit", "validate", "test", "predict", "filter", "doctor", "serve-command")
WITHOUT_CONFIG = {
    "score": "vrft.cli.score",
    "evaluate": "vrft.cli.evaluate",
    "export": "vrft.cli.export",
    "report": "vrft.cli.report",
    "configs": "vrft.cli.configs",
    "fits": "vrft.cli.fits",
}
"""Commands that take no config, mapped to their modules."""

OTHER_NAMES = {"train": "fit", "eval": "validate", "serve": "serve-command", "infer": "predict", "check": "doctor"}
"""Names that other packages use for our commands, for the hint in `unknown`."""

HELP = """\
vrft: visual reinforcement fine-tuning of vision-language models

usage: python -m vrft COMMAND --config NAME_OR_FILE [--config NAME_OR_FILE ...] [--field=value ...]

commands
  fit            train; evaluate held-out images before and after; write everything to the run's folder
  validate       evaluate the base or a checkpoint (--ckpt_path last) on held-out images
  test           like validate, but resumes after an interruption; --against compares with another model
  predict        answer questions about held-out or any images (--images FILES --query WORDS --draw), without scores
  filter         find the training samples that the base sometimes gets right (--reward NAME), for data.keep
  doctor         check a config before a long run: draw prompts and boxes; check tokens, rewards and memory
  fits           what fits on a GPU, from a model's config.json: python -m vrft fits --checkpoint NAME --gpu_memory 24
  report         write a run as one HTML file: python -m vrft report RUN [--open]
  serve-command  print how to start the vLLM servers that a config names (docs/vllm.md)
  score          compute the rewards of completions in a file, without a model
  evaluate       print COCO's or LVIS's table for a file of boxes, without a model
  configs        list the configs that --config can name; show one, or copy it to a file of your own
  export         write any checkpoint of a run as a Hugging Face folder, merged or the adapter alone; upload it

examples
  python -m vrft fit --config quickstart                       no GPU, nothing to download
  python -m vrft fit --config quickstart --model.beta=0.01     any field can be overridden
  python -m vrft fit --config quickstart --ckpt_path last      resume a run
  python -m vrft fit --config quickstart --print_config        all fields with their values
  python -m vrft fit --help                                    the most common fields
  python -m vrft fit --model.help vrft.RFT                     the fields of a class, explained
  python -m vrft predict --config runs/NAME/config.yaml --ckpt_path last --images photos --query cat --draw
  python -m vrft export runs/NAME --output my-model

A run's folder is runs/NAME, after the experiment's config, or --run_dir DIR.
"""


def main(args: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        args: command-line arguments; default: `sys.argv[1:]`. If given, warning filters, log handlers and environment
            variables of the process are restored before this returns.

    Returns:
        0 on success; 1 if the run could not be finished or `doctor` found problems; 2 if a setting or a file is
        invalid; 128 + N if signal N stopped the run.
    """
    called = args is not None
    args = sys.argv[1:] if args is None else list(args)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files and categories may have lone surrogates
    if len(args) == 2 and args[0] == "help":
        args = [args[1], "--help"]
    if not args or args[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if args[0] == "--version":
        from vrft import __version__

        print(__version__)
        return 0
    if args[0] in COMMANDS and {"-h", "--help"} & {*args}:
        from vrft.cli.help import overview, terminal_width

        print(overview(args[0], terminal_width()), end="")
        return 0
    if args[0] not in COMMANDS and args[0] not in WITHOUT_CONFIG:
        return unknown(args[0])
    from vrft.cli.harmless import restored_output, tidy_output

    with restored_output() if called else nullcontext():
        tidy_output()
        return run(args)


def run(args: Sequence[str]) -> int:
    """Run a command other than help."""
    from vrft.cli.parser_errors import run_command

    if args[0] in WITHOUT_CONFIG:
        return run_command(import_module(WITHOUT_CONFIG[args[0]]).main, args[1:])
    return run_command(run_with_config, args)


def run_with_config(args: Sequence[str]) -> int:
    """Run a command that takes a config. Check whatever needs no torch before importing torch."""
    from vrft.cli.first_checks import prepare

    prepared = prepare(args)
    with no_collections():
        from vrft.cli import app
    return app.run(prepared)


@contextmanager
def no_collections() -> Iterator[None]:
    """Disable garbage collection during imports, where it takes a sixth of the time and frees nothing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def unknown(command: str) -> int:
    """Report an unknown command, suggest the closest one, and return the exit code."""
    from difflib import get_close_matches

    names = [*COMMANDS, *WITHOUT_CONFIG]
    close = [OTHER_NAMES[command]] if command in OTHER_NAMES else get_close_matches(command, names, n=1)
    if command.startswith("-"):
        print(
            f"vrft: expected a command before options, e.g. fit {command}; `python -m vrft` lists them", file=sys.stderr
        )
        return 2
    hint = f"did you mean '{close[0]}'?" if close else f"expected one of {', '.join(names)}"
    print(f"vrft: no such command: {command} ({hint})", file=sys.stderr)
    return 2


def entry() -> NoReturn:
    """Run the command line of this process and exit. Ctrl-C exits without a traceback.

    Put the working folder first in `sys.path`, so that `vrft` and `python -m vrft` find the same modules: Python puts
    the script's folder there for the former. With Python's option -P, it adds neither, and `sys.path` stays as it is.
    """
    if not sys.flags.safe_path:
        sys.path[0] = os.getcwd()
    from vrft.utils.interrupts import INTERRUPTED, exit_with

    try:
        code = main()
    except KeyboardInterrupt:
        print("vrft: interrupted", file=sys.stderr)
        code = INTERRUPTED
    exit_with(code)


if __name__ == "__main__":
    entry()
