"""`python -m vrft export RUN`: write any checkpoint of a run as a Hugging Face folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from vrft.cli.config_checks import untrusted
from vrft.cli.parser import Parser
from vrft.errors import ConfigurationError
from vrft.report.model_card import lora_of, read_run, write_card
from vrft.run_dir import RunDir, is_checkpoint

if TYPE_CHECKING:
    from vrft.policy import Policy
    from vrft.tasks import Task

DESCRIPTION = """\
Writes a folder that transformers, peft and vLLM load: the model of a run with adapters merged, or the adapter alone,
with processor, chat template, a greedy generation config and a model card with the numbers of the run. --push uploads
that folder, and nothing else, to the Hugging Face Hub, with the token of HF_TOKEN or `hf auth login`.
"""
PREFIX = "policy.model."
"""Prefix of the names of the policy's weights in a checkpoint."""


def build_parser() -> Parser:
    """Return the parser of the command."""
    parser = Parser("export", DESCRIPTION)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--ckpt", default="last", metavar="PATH", help="a checkpoint, or its name in the run's folder")
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: export in the run's folder")
    parser.add_argument("--adapter", action="store_true", help="write the adapter of a LoRA run alone, for peft")
    parser.add_argument("--push", metavar="NAME", help="upload the folder to this model on the Hugging Face Hub")
    parser.add_argument("--private", action="store_true", help="with --push: a new model is private")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="precision of the weights; default: exact"
    )
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run Python code that comes with the base's checkpoint"
    )
    return parser


def main(args: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    from vrft.cli import push

    arguments = build_parser().parse_args(args)
    if arguments.push is not None:
        push.check_name(arguments.push)
    elif arguments.private:
        raise ConfigurationError("export: --private: only with --push NAME")
    run = RunDir(arguments.run)
    config = read_run(run.path)
    if arguments.adapter and not lora_of(config):
        raise ConfigurationError(f"export: --adapter: {run} trained all weights and has no adapter")
    checkpoint = checkpoint_of_run(run, arguments.ckpt)
    folder = arguments.output or default_folder(run, checkpoint, arguments.adapter)
    name = None
    if arguments.push is not None:
        push.check_output(folder)
        name = push.full_name(arguments.push)
    policy, task = instantiate(config, arguments.trust_remote_code)
    address = None if name is None else push.create_repository(name, arguments.private)
    write(arguments, config, checkpoint, folder, policy, task)
    print(f"Hugging Face folder: {folder}")
    if name is not None:
        push.upload(folder, name)
        print(f"Hugging Face Hub: {address}")
    return 0


def write(
    arguments: Namespace, config: dict[str, Any], checkpoint: Path, folder: Path, policy: Policy, task: Task
) -> None:
    """Write a checkpoint of a run and its model card to a folder."""
    import torch

    from vrft.cli.harmless import silence_harmless
    from vrft.policy.export import EXPORT_STEPS, export_policy
    from vrft.training.checkpoint_io import AtomicCheckpointIO
    from vrft.utils.progress import progress

    silence_harmless()
    content = AtomicCheckpointIO().load_weights(checkpoint)
    state, step = content["state_dict"], content["global_step"]
    weights = {name.removeprefix(PREFIX): value for name, value in state.items() if name.startswith(PREFIX)}
    length = config["model"]["init_args"].get("max_completion_length", 256)
    dtype = arguments.dtype and getattr(torch, arguments.dtype)
    with progress("export", EXPORT_STEPS) as advance:
        export_policy(policy, folder, weights, length, adapter_alone=arguments.adapter, dtype=dtype, advance=advance)
    program = None if arguments.adapter else usage_program(task, policy, folder)
    write_card(folder, arguments.run, task.template, adapter=arguments.adapter, step=step, program=program)


def usage_program(task: Task, policy: Policy, folder: Path) -> str:
    """Return the program for the model card of an exported folder."""
    from vrft.boxes import frame_of, with_decimals
    from vrft.policy.coordinates import FAMILY_COORDINATES
    from vrft.report.usage import usage

    model_type = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    coordinates = policy.coordinates or FAMILY_COORDINATES.get(model_type, "thousandths")
    frame = with_decimals(frame_of(coordinates, (1, 1)), policy.coordinate_decimals)
    has_boxes = "{width}" in task.prompt + task.template
    words = {name: text for name, text in task.fields(frame).items() if isinstance(text, str)}
    return usage(task.template, task.system, coordinates if has_boxes else None, words)


def checkpoint_of_run(run: RunDir, name: str) -> Path:
    """Return the path of a checkpoint, given its path or its name in the run's folder.

    Raises:
        ConfigurationError: the checkpoint does not exist.
    """
    for path in (Path(name), run.checkpoints / name, run.checkpoint(name)):
        if is_checkpoint(path):
            return path
    names = ", ".join(sorted(path.stem for path in run.checkpoints.glob("*.ckpt"))) or "none"
    raise ConfigurationError(f"export: --ckpt: no such checkpoint: {name}; {run.checkpoints} has {names}")


def default_folder(run: RunDir, checkpoint: Path, adapter: bool) -> Path:
    """Return the default folder for the export of a checkpoint or its adapter, in the run's folder."""
    last = run.checkpoint("last")
    at_end = last.exists() and checkpoint.samefile(last)
    folder = run.export if at_end else run.export_of(checkpoint.stem)
    return folder / "adapter" if adapter else folder


def instantiate(config: dict[str, Any], trusted: bool) -> tuple[Policy, Task]:
    """Return the policy and the task of a run, without weights.

    Args:
        config: config of the run.
        trusted: whether the command line permits code that comes with the base's checkpoint.

    Raises:
        ConfigurationError: a setting is invalid, or the checkpoint needs its own code, which is not permitted.
    """
    from jsonargparse import ArgumentError

    from vrft.cli.config_parser import ConfigParser, harden_parsing
    from vrft.policy import Policy
    from vrft.tasks import Task

    settings = config["model"]["init_args"]["policy"]
    if settings["init_args"].get("trust_remote_code") and not trusted:
        raise ConfigurationError(untrusted("--trust-remote-code"))
    harden_parsing()
    parser = ConfigParser(exit_on_error=False)
    parser.add_subclass_arguments(Policy, "policy")
    parser.add_subclass_arguments(Task, "task")
    try:
        made = parser.instantiate(parser.parse_object({"policy": settings, "task": config["task"]}))
    except ArgumentError as error:
        raise ConfigurationError(f"export: config.yaml: {error}") from error
    return made.policy, made.task
