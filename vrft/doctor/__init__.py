"""What is looked at before hours are spent: data, prompts, rewards, coordinates, memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from vrft.data import RecordData, VisionData
from vrft.data.records import Record, category
from vrft.doctor.memory import check_memory
from vrft.doctor.picture import draw_sheet
from vrft.doctor.probe import check_readings
from vrft.doctor.prompts import check_frames, check_lengths, check_rewards, patch_side
from vrft.training.module import VisionModule
from vrft.types import Sample

SAMPLES = 64
"""Training samples that are looked at one by one; data as a whole is looked at without images."""


def examine(
    module: VisionModule, data: VisionData, folder: Path, console: Console, probe: int, gpu_memory: float | None
) -> Iterator[str]:
    """Look at all that `fit` would use, and say on the console what there is. Yields what is wrong.

    Args:
        module: loaded.
        data: set up for fitting.
        folder: gets `samples.png`.
        console: for what is fine as well.
        probe: prompts that the model answers; 0 for none.
        gpu_memory: GB that the run may use; default: what this machine's GPU has.
    """
    samples = choose_samples(data)
    yield from check_data(module, data, console)
    batch = module.encoder(samples)
    yield from check_frames(module, batch, console)
    yield from check_lengths(module, batch, console)
    yield from check_rewards(module, batch, console)
    draw_sheet(module.task, batch, folder / "samples.png")
    console.print(f"samples with their prompts and targets: {folder / 'samples.png'}", soft_wrap=True)
    yield from check_readings(module, data, probe, console)
    yield from check_memory(module, data, batch, gpu_memory, console)


def choose_samples(data: VisionData) -> list[Sample]:
    """Some training samples: those with most boxes, and others all over the data."""
    dataset = data.train_set()
    size: int = len(dataset)  # type: ignore[arg-type]
    spread = [*range(0, size, -(-size // SAMPLES))]
    longest: list[int] = []
    if isinstance(data, RecordData):
        targets = [len(record.target) for record in data.train_set().records]
        longest = sorted(range(size), key=lambda index: -targets[index])[:8]
    return [dataset[index] for index in dict.fromkeys([*longest, *spread])]


def check_data(module: VisionModule, data: VisionData, console: Console) -> Iterator[str]:
    """Sizes, classes and images too small to be seen."""
    if not isinstance(data, RecordData):
        return
    side = patch_side(module.policy.base.config)
    for name, records in (("train", data.train_set().records), ("held out", data.val_set().records)):
        console.print(_balance(name, records))
        small = [record for record in records if min(record.size) < side]
        if small:
            width, height = small[0].size
            yield (
                f"{len(small)} of {len(records)} images ({name}) are smaller than a patch of {side} x {side} pixels, "
                f"e.g. {width} x {height}: {small[0].location}; enlarge them, or set model.policy.min_pixels"
            )


def _balance(name: str, records: object) -> Table:
    assert isinstance(records, list)
    counts = Counter(category(record) for record in records if isinstance(record, Record))
    table = Table("", f"{len(records)} records, {len(counts)} categories or answers", title=name, title_justify="left")
    ranked = counts.most_common()
    for label, count in [*ranked[:10], *ranked[10:][-3:]]:
        table.add_row(label[:60] or "-", str(count))
    return table
