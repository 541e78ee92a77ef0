"""The front door: `python -m vrft`. Help needs no torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

COMMANDS = ("fit", "validate", "test", "predict", "doctor", "serve-command")
WITHOUT_CONFIG = {
    "score": "vrft.cli.score",
    "evaluate": "vrft.cli.evaluate",
    "export": "vrft.cli.export",
    "report": "vrft.cli.report",
}
"""Commands with options of their own, and the module of each."""

HELP = """\
vrft: visual reinforcement fine-tuning of vision-language models

usage: python -m vrft COMMAND --config FILE [--config FILE ...] [--field=value ...]

commands
  fit        train; evaluates held-out images before and after, writes everything to the run's folder
  validate   evaluate held-out images, of the base or of a checkpoint (--ckpt_path last)
  test       the same as validate, goes on where it was interrupted; --against compares two checkpoints
  predict    answer held-out images, or any images (--images FILES --query WORDS --draw), without scores
  doctor     check a config before hours are spent: prompts and boxes drawn, tokens, rewards, memory
  report     a run as one HTML file to look at: python -m vrft report RUN [--open]
  serve-command  what starts the vLLM servers that a config names (docs/vllm.md)
  score      rewards of completions in a file, without a model
  evaluate   COCO's or LVIS's table of a file of boxes, without a model
  export     a Hugging Face folder of any checkpoint of a run, merged or the adapter alone

examples
  python -m vrft fit --config configs/quickstart.yaml                       no GPU, nothing to download
  python -m vrft fit --config configs/quickstart.yaml --model.beta=0.01     any field can be overridden
  python -m vrft fit --config configs/quickstart.yaml --ckpt_path last      continue a run
  python -m vrft fit --config configs/quickstart.yaml --print_config        all fields with their values
  python -m vrft fit --help                                                 what the fields are
  python -m vrft fit --model.help vrft.RFT                                  the fields of a class, explained
  python -m vrft predict --config runs/NAME/config.yaml --ckpt_path last --images photos --query cat --draw
  python -m vrft export runs/NAME --output my-model

A run's folder is runs/ and the experiment's name, or --run_dir DIR.
"""


def main(args: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, or 2 after a message about what the user can mend.

    A run that a signal stopped returns 128 + its number, one that could not be finished 1.
    """
    args = sys.argv[1:] if args is None else list(args)
    if not args or args[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if args[0] == "--version":
        from vrft import __version__

        print(__version__)
        return 0
    if args[0] in COMMANDS and {"-h", "--help"} & {*args}:
        from vrft.cli.help import overview

        print(overview(args[0]), end="")
        return 0
    if args[0] in WITHOUT_CONFIG:
        from vrft.cli.parser_errors import run_command

        return run_command(import_module(WITHOUT_CONFIG[args[0]]).main, args[1:])
    if args[0] not in COMMANDS:
        return unknown(args[0])
    from vrft.cli.app import run

    return run(["serve_command" if args[0] == "serve-command" else args[0], *args[1:]])


def unknown(command: str) -> int:
    """Say what was probably meant."""
    from difflib import get_close_matches

    names = [*COMMANDS, *WITHOUT_CONFIG]
    close = get_close_matches(command, names, n=1)
    hint = f"did you mean '{close[0]}'?" if close else f"expected one of {', '.join(names)}"
    print(f"vrft: no such command: {command} ({hint})", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
