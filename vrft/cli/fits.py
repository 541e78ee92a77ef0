"""`python -m vrft fits`: estimate what fits on a GPU, without downloading the checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vrft.cli.parser import Parser
from vrft.errors import ConfigurationError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from vrft.doctor.fits import Fit

DESCRIPTION = """\
Estimates the GPU memory of training a model in each way, from its config.json alone: no weights are downloaded or read.
The formulas are those of `python -m vrft doctor`, which knows your data as well. They are computed, not measured.
"""
STAYS = {
    "weights": ("policy", "reference"),
    "states": ("gradients", "optimizer"),
    "decoding": ("decoding weights", "keys, values and graphs"),
}
"""Columns of the table for the memory that stays allocated, with the parts that each sums up."""

PHASES = ("load", "rollout", "update")
"""Phases with a column. The reference and an evaluation have none, since they need less than update and rollout."""


def build_parser() -> Parser:
    """Return the parser of the command."""
    parser = Parser("fits", DESCRIPTION)
    parser.add_argument("--checkpoint", required=True, metavar="NAME", help="a folder or a model on the Hub")
    parser.add_argument("--gpu_memory", type=float, metavar="GB", help="memory of the GPU, for the largest batch")
    parser.add_argument("--image_tokens", type=int, help="tokens of an image; default: those of --pixels")
    parser.add_argument("--pixels", type=int, default=802816, help="area of an image (max_pixels); default: 802816")
    parser.add_argument("--text_tokens", type=int, default=200, help="tokens of a prompt's text; default: 200")
    parser.add_argument("--max_completion_length", type=int, default=256, help="default: 256")
    parser.add_argument("--num_generations", type=int, default=8, help="completions per prompt; default: 8")
    parser.add_argument("--max_extra_rollouts", type=int, default=0, help="of dynamic sampling; default: 0")
    parser.add_argument("--max_tokens_per_micro_batch", type=int, default=4096, help="default: 4096")
    parser.add_argument("--lora_r", type=int, default=16, help="rank of adapters; default: 16")
    parser.add_argument(
        "--modules_to_save", nargs="+", default=[], metavar="NAME", help="modules that train beside LoRA"
    )
    parser.add_argument(
        "--server_share",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="memory_share of a vLLM server that sleeps on the same GPU; default: no server",
    )
    parser.add_argument(
        "--no_gradient_checkpointing", action="store_true", help="keep activations instead of computing them again"
    )
    return parser


def main(args: Sequence[str]) -> int:
    """Run the command and return its exit code, 1 if nothing fits on the GPU."""
    arguments = build_parser().parse_args(args)
    for name in ("gpu_memory", "image_tokens", "pixels", "max_completion_length", "num_generations", "lora_r"):
        value = getattr(arguments, name)
        if value is not None and not value > 0:
            raise ConfigurationError(f"fits: --{name}: expected a number above 0, got {value}")
    share = arguments.server_share
    if not 0 <= share < 1 or (share and arguments.gpu_memory is None):
        raise ConfigurationError(f"fits: --server_share: expected a part of --gpu_memory below 1, got {share}")
    if arguments.max_extra_rollouts < 0:
        raise ConfigurationError(f"fits: --max_extra_rollouts: expected at least 0, got {arguments.max_extra_rollouts}")
    from vrft.doctor.fits import Request, fits
    from vrft.doctor.shape import image_tokens

    config = read_config(arguments.checkpoint)
    tokens = arguments.image_tokens or image_tokens(config, arguments.pixels)
    if tokens is None:
        raise ConfigurationError(
            f"fits: the config of a {config.model_type} doesn't say how many tokens an image has; name them with "
            "--image_tokens (`python -m vrft doctor` counts them)"
        )
    request = Request(
        image_tokens=tokens,
        text_tokens=arguments.text_tokens,
        completion_tokens=arguments.max_completion_length,
        generations=arguments.num_generations,
        micro_batch=arguments.max_tokens_per_micro_batch,
        rank=arguments.lora_r,
        checkpointing=not arguments.no_gradient_checkpointing,
        modules_to_save=tuple(arguments.modules_to_save),
        server_share=share,
        rollouts=1 + arguments.max_extra_rollouts,
    )
    found = fits(config, request, arguments.gpu_memory)
    show(found, f"{config.model_type}, {tokens} tokens per image, GB with one prompt per step", arguments.gpu_memory)
    return 0 if arguments.gpu_memory is None or any(fit.batch for fit in found) else 1


def read_config(checkpoint: str) -> PreTrainedConfig:
    """Read a checkpoint's config.

    Raises:
        ConfigurationError: the checkpoint has no config, or vrft can't train its model.
    """
    from transformers import AutoConfig

    from vrft.policy.checkpoint import BUILT_IN, find_checkpoint
    from vrft.policy.support import check_supported
    from vrft.utils.hub import loading
    from vrft.utils.hub_cache import name_or_cached

    if (BUILT_IN / checkpoint).is_dir():
        checkpoint = str(BUILT_IN / checkpoint)
    elif not Path(checkpoint).expanduser().exists():
        try:
            find_checkpoint(checkpoint)  # asks the Hub once, without retries
        except ConfigurationError as error:
            raise ConfigurationError(str(error).replace("model.policy.checkpoint", "fits: --checkpoint")) from error
    with loading("fits: --checkpoint", checkpoint):
        folder = name_or_cached("fits: --checkpoint", checkpoint)
        check_supported(folder, trust_remote_code=False)
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder)
    return config


def show(found: Sequence[Fit], title: str, gpu_memory: float | None) -> None:
    """Print a row for each way of training."""
    from rich.console import Console
    from rich.table import Table

    from vrft.doctor.fits import MAX_BATCH
    from vrft.doctor.memory import RESERVE
    from vrft.doctor.phases import GB

    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for number, name in enumerate(("", *STAYS, *PHASES, "all")):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    if gpu_memory is not None:
        table.add_column("batch", justify="right", no_wrap=True)
    for fit in found:
        sizes = [sum(fit.estimate.stays[part] for part in column) for column in STAYS.values()]
        sizes += [fit.estimate.phases[phase] for phase in PHASES]
        cells = [f"{size / GB:.1f}" for size in (*sizes, fit.estimate.peak + RESERVE)]
        batch = [] if fit.batch is None else [str(fit.batch) if fit.batch else "-"]
        table.add_row(fit.way.name, *cells, *batch)
    console = Console()
    console.print(table)
    reserve = f"{RESERVE / GB:g} GB for CUDA and fragmentation"
    console.print(
        "stays: weights, states (gradients and optimizer), ref. (a frozen copy), decoding (copies of weights)"
    )
    if any(fit.estimate.stays.get("vLLM server, asleep") for fit in found):
        console.print("rollout: the weights and the vLLM server's share; `all` includes the server while it sleeps")
    console.print("load, rollout, update: peak memory of the phase, including what stays")
    console.print(f"all: peak memory of a run, with {reserve}")
    if gpu_memory is not None:
        console.print(f"batch: the largest data.batch_size on {gpu_memory:g} GB, up to {MAX_BATCH}; -: none fits")
