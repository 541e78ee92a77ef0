"""`python -m vrft export RUN`: a Hugging Face folder of any checkpoint of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vrft.cli.parser import Parser
from vrft.errors import ConfigurationError

if TYPE_CHECKING:
    from vrft.policy import Policy
    from vrft.tasks import Task

DESCRIPTION = """\
Writes what transformers, peft and vLLM load: the model of a run with adapters merged, or the adapter alone, with
processor, chat template, a greedy generation config and a model card with the numbers of the run.
"""
PREFIX = "policy.model."


def build_parser() -> Parser:
    """The command's options."""
    parser = Parser("export", DESCRIPTION)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--ckpt", default="last", metavar="PATH", help="a checkpoint, or its name in the run's folder")
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: export in the run's folder")
    parser.add_argument("--adapter", action="store_true", help="of a LoRA run: the adapter alone, for peft")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of the weights; default: exact")
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run Python code that comes with the base's checkpoint"
    )
    return parser


def main(args: Sequence[str]) -> int:
    """Run the command."""
    arguments = build_parser().parse_args(args)
    import torch

    from vrft.policy.export import EXPORT_STEPS, export_policy
    from vrft.report.model_card import lora_of, read_run, write_card
    from vrft.training.checkpoint_io import AtomicCheckpointIO
    from vrft.utils.progress import progress

    run: Path = arguments.run
    config = read_run(run)
    if arguments.adapter and not lora_of(config):
        raise ConfigurationError(f"export: --adapter: {run} trained all weights and has no adapter")
    checkpoint = find(run, arguments.ckpt)
    last = run / "checkpoints" / "last.ckpt"
    at_end = last.exists() and checkpoint.samefile(last)
    folder: Path = arguments.output or run / ("export" if at_end else f"export-{checkpoint.stem}")
    if arguments.adapter and arguments.output is None:
        folder /= "adapter"
    policy, task = instantiate(config, arguments.trust_remote_code)
    content = AtomicCheckpointIO().load_checkpoint(checkpoint)
    state, step = content["state_dict"], content["global_step"]
    weights = {name.removeprefix(PREFIX): value for name, value in state.items() if name.startswith(PREFIX)}
    length = config["model"]["init_args"].get("max_completion_length", 256)
    dtype = arguments.dtype and getattr(torch, arguments.dtype)
    with progress("export", EXPORT_STEPS) as advance:
        export_policy(policy, folder, weights, length, adapter_alone=arguments.adapter, dtype=dtype, advance=advance)
    write_card(folder, run, task.template, adapter=arguments.adapter, step=step)
    print(f"Hugging Face folder: {folder}")
    return 0


def find(run: Path, name: str) -> Path:
    """A checkpoint by its path, or by its name in the run's folder.

    Raises:
        ConfigurationError: there is none.
    """
    inside = run / "checkpoints"
    for path in (Path(name), inside / name, inside / f"{name}.ckpt"):
        if path.is_file():
            return path
    there = ", ".join(sorted(path.stem for path in inside.glob("*.ckpt"))) or "none"
    raise ConfigurationError(f"export: --ckpt: no such checkpoint: {name}; {inside} has {there}")


def instantiate(config: dict[str, Any], trusted: bool) -> tuple[Policy, Task]:
    """Policy and task of a run; no weights are read.

    Raises:
        ConfigurationError: a setting is wrong, or asks for code of strangers.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    from vrft.policy import Policy
    from vrft.tasks import Task

    settings = config["model"]["init_args"]["policy"]
    if settings["init_args"].get("trust_remote_code") and not trusted:
        raise ConfigurationError(
            "model.policy.trust_remote_code: a file can't say that code of strangers may run; if you mean it, say "
            "--trust-remote-code on the command line"
        )
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Policy, "policy")
    parser.add_subclass_arguments(Task, "task")
    try:
        made = parser.instantiate(parser.parse_object({"policy": settings, "task": config["task"]}))
    except ArgumentError as error:
        raise ConfigurationError(f"export: config.yaml: {error}") from error
    return made.policy, made.task
