"""Print `fit --help`: the most common fields, from the signatures and docstrings of the classes.

`python -m vrft.cli.help` writes the file with these fields, and the file of `vrft.cli.field_names`.
"""

from __future__ import annotations

import inspect
import re
import shutil
import textwrap
from argparse import SUPPRESS
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

FIELDS = Path(__file__).with_name("fields.txt")
"""Fields of the classes, as `describe_fields` returns them."""

INDENT = 44
"""Column of the descriptions."""

WIDTH = 120

MIN_WIDTH = 16
"""Minimum width of the column of descriptions."""

WHOLE: Any = {"break_long_words": False, "break_on_hyphens": False}
"""Options of `textwrap` that keep words whole."""

USAGE = "usage: python -m vrft {command} --config NAME_OR_FILE [--config NAME_OR_FILE ...] [--field=value ...]"

GENERAL = """
  --run_dir DIR                     folder for everything that the run writes (default: runs/ and the experiment's name)
  --task CLASS, --task.template TEXT   wording of questions and parsing of answers
  --seed_everything INT             seed of sampling, order and the choice of shots
  --trainer.max_steps INT           optimizer steps
  --trainer.val_check_interval INT  number of rollouts between evaluations of held-out images
  --trainer.devices, --trainer.accelerator, --trainer.strategy   as in Lightning
  --trainer.logger.offline=false    log to Weights & Biases online (field of the last logger in the list)
  --transcripts.every_n_rollouts INT, --checkpoint.every_n_train_steps INT
  --guards.off '[NAME, ...]'        guards to turn off; see docs/dashboards.md
"""

OWN = {
    "test": """
  --against base|FILE               compare with the base, a checkpoint or a results file, on the same images
  --resamples INT                   bootstrap samples per interval of the comparison (200)
  --samples INT                     sample so many answers to each question, for pass@k, votes, the likeliest of k (1)
  --budgets '[INT, ...]'            cut the thinking after so many tokens, and judge the answers that follow
  --ckpt_path last|FILE             the checkpoint to test (default: the base)
""",
    "doctor": """
  --gpu_memory GB                   memory of the GPU to train on (default: of the GPU here)
  --probe INT                       prompts that the model answers, to try other readings of its boxes (48; 0: off)
""",
    "predict": """
  --images FILE_OR_FOLDER ...       images to query, without annotations (default: the config's held-out images)
  --split val|test                  without --images, ask about the held-out images, or about those of `test` (val)
  --query WORDS ...                 categories or an instruction to ask about (default: the config's categories)
  --draw                            write pictures of the images with the answers
  --ckpt_path last|FILE|FOLDER      the checkpoint or exported folder that answers (default: the base)
""",
    "filter": """
  --reward NAME                     the reward of the config that tells success (default: that of model.difficulty)
  --success SCORE                   smallest score that counts as a success (that of model.difficulty, or 0.5)
  --samples INT                     answers to sample to each training sample (8)
  --lowest, --highest SHARE         keep samples with at least and at most this share of successes (0.1, 0.9)
  --ckpt_path last|FILE             the checkpoint that answers (default: the base)
""",
    "fit": """
  --ckpt_path last|FILE             resume a run
""",
    "validate": """
  --samples INT                     sample so many answers to each question, as in `test` (1)
  --ckpt_path last|FILE             the checkpoint to evaluate (default: the base)
""",
}
"""Options of each command."""

MORE = """
The fields of any class:    python -m vrft {command} --model.help vrft.SFT    (also --data.help, --task.help)
Every field and its value:    python -m vrft {command} --config NAME_OR_FILE --print_config
"""


def overview(command: str, width: int = WIDTH) -> str:
    """Return the help of a command. It is read from a file, because importing the classes takes seconds.

    Args:
        command: the command.
        width: maximum length of a line, unless a name is longer.
    """
    sections = [USAGE.format(command=command), OWN.get(command, ""), GENERAL]
    text = "\n".join([*sections, FIELDS.read_text(encoding="utf-8"), MORE.format(command=command)])
    return "".join(f"{part}\n" for line in text.splitlines() for part in _wrap(line, width))


def terminal_width() -> int:
    """Return the width of the help: the width of the terminal, at most `WIDTH`, or `WIDTH` for a file."""
    return min(shutil.get_terminal_size((WIDTH, 24)).columns, WIDTH)


def _wrap(line: str, width: int) -> list[str]:
    """Break a line of a name, two or more blanks and a description, which stays in its column if there is room.

    >>> _wrap("  --beta    weight of the KL term", 28)
    ['  --beta    weight of the KL', '            term']
    """
    found = re.fullmatch(r"( *\S.*?  +)(\S.*)", line)
    if len(line) <= width or found is None:
        return textwrap.wrap(line, width, subsequent_indent="    ", **WHOLE) or [""]
    name, description = found.groups()
    if len(name) + MIN_WIDTH > width:
        indent = " " * 8
        below = textwrap.wrap(description, width, initial_indent=indent, subsequent_indent=indent, **WHOLE)
        return [name.rstrip(), *below]
    return textwrap.wrap(description, width, initial_indent=name, subsequent_indent=" " * len(name), **WHOLE)


def describe_fields() -> str:
    """Return the text of `FIELDS`: the fields of the model, the policy and COCO data."""
    from vrft import RFT, Policy
    from vrft.data import CocoData

    classes = {"model: vrft.RFT": RFT, "model.policy: vrft.Policy": Policy, "data: vrft.data.CocoData": CocoData}
    return "\n".join(
        "".join(f"{line}\n" for line in [title, *_fields(title.partition(":")[0], cls)])
        for title, cls in classes.items()
    )


def _fields(prefix: str, cls: type) -> Iterator[str]:
    """Yield a line for each parameter of a class: name, description and default."""
    parser = ArgumentParser()
    parser.add_class_arguments(cls, prefix)
    for action in parser._actions:
        is_field = action.dest.startswith(f"{prefix}.") and action.default != SUPPRESS
        if is_field and action.dest != f"{prefix}.task":  # the task is a top-level field, shared with the data
            default = _value(action.default)
            shown = f" ({default})" if default else ""
            yield f"{f'  --{action.dest}':<{INDENT}}{' '.join(f'{action.help}{shown}'.split())}"


def _value(default: object) -> str:
    """Return a default as text, or "" if there is none."""
    if default is None or default is inspect.Parameter.empty:
        return ""
    return str(default["class_path"]).rpartition(".")[2] if isinstance(default, dict) else str(default)


if __name__ == "__main__":
    from vrft.cli.describe import describe_classes
    from vrft.cli.field_names import CLASSES

    FIELDS.write_text(describe_fields(), encoding="utf-8")
    CLASSES.write_text(describe_classes(), encoding="utf-8")
