"""What `fit --help` prints: the fields that people set, out of the signatures and docstrings of the classes."""

from __future__ import annotations

import inspect
import textwrap

from jsonargparse._parameter_resolvers import get_signature_parameters

USAGE = "usage: python -m vrft {command} --config FILE [--config FILE ...] [--field=value ...]"

GENERAL = """
  --run_dir DIR                    folder for everything that the run writes (default: runs/ and the experiment's name)
  --task CLASS, --task.template TEXT   how to ask and how to read answers
  --ckpt_path last|FILE            continue a run, or evaluate its checkpoint
  --seed_everything INT            of sampling, order and choice of shots
  --trainer.max_steps INT          optimizer steps
  --trainer.val_check_interval INT evaluate held-out images every so many rollouts
  --trainer.devices, --trainer.accelerator, --trainer.strategy   as in Lightning
  --trainer.logger.offline=false   send the run to Weights & Biases (the last logger of the list)
  --transcripts.every_n_rollouts INT, --checkpoint.every_n_train_steps INT
  --guards.off '[NAME, ...]'       guards that keep quiet, see docs/dashboards.md
"""

PREDICT = """
  --images FILE_OR_FOLDER ...      what to ask about, no annotation needed (default: the config's held-out images)
  --query WORDS ...                what to ask of each: categories, an instruction (default: the config's categories)
  --draw                           pictures of the images with the answers
  --ckpt_path FOLDER               an exported folder goes as well
"""

MORE = """
The fields of any class:    python -m vrft {command} --model.help vrft.SFT    (also --data.help, --task.help)
Every field and its value:    python -m vrft {command} --config FILE --print_config
"""


def overview(command: str) -> str:
    """The help of one command."""
    from vrft import RFT, Policy
    from vrft.data import CocoData

    sections = [USAGE.format(command=command), GENERAL, *([PREDICT] if command == "predict" else [])]
    for prefix, cls in (("model", RFT), ("model.policy", Policy), ("data", CocoData)):
        sections.append(f"{prefix}: {cls.__module__}.{cls.__qualname__}\n" + "\n".join(_fields(prefix, cls)) + "\n")
    return "\n".join([*sections, MORE.format(command=command)])


def _fields(prefix: str, cls: type) -> list[str]:
    lines = []
    for parameter in get_signature_parameters(cls, "__init__"):
        if parameter.name == "task":  # it has a field of its own, shared with the data
            continue
        shown = "" if parameter.default in (inspect.Parameter.empty, None) else f" ({_value(parameter.default)})"
        option = f"  --{prefix}.{parameter.name}".ljust(43)
        lines.append(f"{option} {textwrap.shorten(f'{parameter.doc}{shown}', 86)}")
    return lines


def _value(default: object) -> str:
    return default.__name__ if isinstance(default, type) else str(default)
