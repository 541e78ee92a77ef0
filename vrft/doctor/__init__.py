"""Check data, prompts, rewards, coordinates and memory before a long run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vrft.data import RecordData, VisionData
from vrft.data.record import Record, category
from vrft.data.record_set import image_file
from vrft.doctor.memory import check_memory
from vrft.doctor.precision import check_precision
from vrft.doctor.probe import check_readings
from vrft.doctor.prompts import check_frames, check_lengths, check_rewards, patch_side
from vrft.doctor.samples_picture import draw_sheet
from vrft.training.module import VisionModule
from vrft.types import Sample
from vrft.utils.display import counted, visible

NUM_SAMPLES = 64
"""Number of training samples whose images are decoded and checked."""


def examine(
    module: VisionModule, data: VisionData, folder: Path, console: Console, probe: int, gpu_memory: float | None
) -> Iterator[str]:
    """Check everything that `fit` would use, describe it on the console, and yield problems.

    Args:
        module: the loaded module.
        data: the data module, set up for fitting.
        folder: folder for `samples.png`.
        console: receives the description.
        probe: number of prompts for the model to answer; 0: none.
        gpu_memory: GPU memory in GB that the run may use; default: the memory of this machine's GPU.
    """
    samples = choose_samples(data)
    yield from check_data(module, data, console)
    batch = module.encoder(samples)
    yield from check_frames(module, batch, console)
    yield from check_precision(module, data, console)
    yield from check_lengths(module, data, batch, console)
    yield from check_rewards(module, batch, console)
    draw_sheet(module.task, batch, folder / "samples.png", partial(image_file, data.train_set()))
    console.print(f"samples with their prompts and targets: {folder / 'samples.png'}", soft_wrap=True)
    yield from check_readings(module, data, probe, console)
    yield from check_memory(module, data, batch, gpu_memory, console)


def choose_samples(data: VisionData) -> list[Sample]:
    """Choose the training samples with the most boxes, and others evenly spread over the data."""
    dataset = data.train_set()
    size: int = len(dataset)  # type: ignore[arg-type]
    spread = [*range(0, size, -(-size // NUM_SAMPLES))]
    largest: list[int] = []
    if isinstance(data, RecordData):
        targets = [len(record.target) for record in data.train_set().records]
        largest = sorted(range(size), key=lambda index: -targets[index])[:8]
    return [dataset[index] for index in dict.fromkeys([*largest, *spread])]


def check_data(module: VisionModule, data: VisionData, console: Console) -> Iterator[str]:
    """Show the size and the categories of the data, and yield a problem if images are smaller than a patch."""
    if not isinstance(data, RecordData):
        return
    side = patch_side(module.policy.base.config)
    for name, records in (("train", data.train_set().records), ("held out", data.val_set().records)):
        _show_balance(name, records, data.noun, console)
        small = [record for record in records if min(record.size) < side]
        if small:
            width, height = small[0].size
            yield (
                f"{len(small)} of {counted(len(records), 'image')} ({name}) smaller than a patch of {side} x {side} "
                f"pixels, e.g. {width} x {height}: {small[0].location}; enlarge them, or set "
                "model.policy.min_pixels if the family has it"
            )


def _show_balance(name: str, records: Sequence[Record], noun: str, console: Console) -> None:
    counts = Counter(map(category, records))
    console.print(f"{name}: {counted(len(records), 'record')}, {counted(len(counts), noun)}", highlight=False)
    table = Table(noun, "records")
    ranked = counts.most_common()
    for label, count in [*ranked[:10], *ranked[10:][-3:]]:
        table.add_row(Text(visible(label[:60]) or "-"), str(count))
    console.print(table)
