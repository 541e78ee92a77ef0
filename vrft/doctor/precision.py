"""Find objects that are too small for the coordinates of answers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rich.console import Console

from vrft.boxes import with_decimals
from vrft.data import RecordData, VisionData
from vrft.data.record import Record
from vrft.rewards.detection import DetectionDIoU, DetectionGIoU, DetectionIoU, DetectionReward
from vrft.tasks import Task
from vrft.tasks.base import numbers_in_words
from vrft.training.module import VisionModule
from vrft.types import Detection, Frame
from vrft.utils.display import visible

EVALUATION_IOU = 0.5
"""The lowest IoU at which evaluators count a box as correct."""

MIN_SHARE = 0.01
"""Minimum share of too small objects in a split that is a problem."""

MAX_DECIMALS = 6

OVERLAPS = (DetectionReward.overlap, DetectionGIoU.overlap, DetectionDIoU.overlap)
"""Overlap functions with a known bound for the loss by rounding."""


class Threshold(NamedTuple):
    """A minimum overlap for the box of an answer, the reward that computes it, and its purpose."""

    name: str
    reward: DetectionReward
    value: float


class Failure(NamedTuple):
    """An object whose box, rounded to the coordinates of answers, does not exceed a threshold."""

    record: Record
    place: str
    true: Detection
    frame: Frame
    overlap: float
    threshold: Threshold


def check_precision(module: VisionModule, data: VisionData, console: Console) -> Iterator[str]:
    """Yield a problem if boxes, rounded to the coordinates of answers, overlap with their objects too little.

    The rounded box earns the full reward, because rewards compare with the rounded target. But a threshold of a reward
    then does not apply to the object, and evaluators may count the box as wrong. If fewer than `MIN_SHARE` of the
    objects of a split are concerned, no score falls by more than that, so they are only described on the console.
    """
    if not isinstance(data, RecordData) or "{width}" not in module.task.prompt + module.task.template:
        return
    limits = thresholds(module)
    for name, records in (("train", data.train_set().records), ("held out", data.val_set().records)):
        framed = ((record, module.encoder.frame_of_size(record.size)) for record in records)
        found = [failure for pair in framed for failure in failures(module.task, *pair, limits)]
        if not found:
            continue
        total = sum(len(record.target) for record in records)
        said = f"{len(found)} of {total} objects ({name}) {describe(found)}; {remedy(module.task, found, limits)}"
        if len(found) >= MIN_SHARE * total:
            yield said
        else:
            note = f"note: {visible(said)}; they are less than {MIN_SHARE:.0%}, so the data can be used as it is"
            console.print(note, highlight=False, markup=False, soft_wrap=True)


def thresholds(module: VisionModule) -> list[Threshold]:
    """Return the thresholds of the rewards and of evaluation, without duplicates."""
    found = [
        Threshold(f"model.rewards.{name}", reward, reward.threshold)
        for name, reward in module.rewards.items()
        if isinstance(reward, DetectionReward)
    ]
    found.append(Threshold("evaluation", DetectionIoU(), math.nextafter(EVALUATION_IOU, 0)))
    return found


def failures(task: Task, record: Record, frame: Frame, limits: Sequence[Threshold]) -> Iterator[Failure]:
    """Yield the objects of a record that do not exceed a threshold after rounding, each once."""
    true = record.target
    if isinstance(true, str) or are_large(task, true, record.size, frame, limits):
        return
    rounded = task.scored_target(record, frame)
    if isinstance(rounded, str):
        return
    boxes = [box.box for box in true], [box.box for box in rounded]
    kinds = {type(limit.reward).overlap: limit.reward for limit in limits}  # most rewards share the IoU
    overlaps = {kind: reward.overlap(*boxes).diagonal() for kind, reward in kinds.items()}
    for i, box in enumerate(true):
        for limit in limits:
            overlap = float(overlaps[type(limit.reward).overlap][i])
            if overlap <= limit.value:
                yield Failure(record, f"object {i + 1} of {len(true)}", box, frame, overlap, limit)
                break


def are_large(
    task: Task, objects: Sequence[Detection], size: tuple[int, int], frame: Frame, limits: Sequence[Threshold]
) -> bool:
    """Return whether all objects are so large that they exceed all thresholds. A fast test that most records pass.

    Rounding moves an edge by at most half a unit. If the sides are at least a units long, the IoU is at least
    ((a - 1) / (a + 1))², and so are (1 + GIoU) / 2 and (1 + DIoU) / 2.
    """
    known = all(type(limit.reward).overlap in OVERLAPS for limit in limits)
    if not known or type(task).scored_target is not Task.scored_target:
        return False
    (width, height), units = size, 10**frame.decimals
    across, down = frame.width * units / width, frame.height * units / height
    root = math.sqrt(max(limit.value for limit in limits))
    return all(
        min((x1 - x0) * across, (y1 - y0) * down) * (1 - root) > 1 + root
        and min(x0, y0, width - x1, height - y1) >= 0  # parts outside of the image would be cut off
        for (x0, y0, x1, y1), _, _ in objects
    )


def describe(found: Sequence[Failure]) -> str:
    """Describe how many objects are too small, and the worst one."""
    worst = min(found, key=lambda failure: failure.overlap)
    record, frame = worst.record, worst.frame
    x0, y0, x1, y1 = worst.true.box
    return (
        f"are too small for coordinates in {numbers_in_words(frame.decimals)}, x from 0 to {frame.width} and y "
        f"from 0 to {frame.height}, e.g. {record.location}: {worst.place}, {worst.true.label!r}, "
        f"{x1 - x0:.4g} x {y1 - y0:.4g} pixels at {x0:.6g}, {y0:.6g} of {record.size[0]} x {record.size[1]}: "
        f"the nearest box overlaps with it by "
        f"{worst.overlap:.2f}, and {worst.threshold.name} needs more than {worst.threshold.value:.2g}"
    )


def remedy(task: Task, found: Sequence[Failure], limits: Sequence[Threshold]) -> str:
    """Return the setting with the fewest decimals that suffice for all objects."""
    for decimals in range(found[0].frame.decimals + 1, MAX_DECIMALS + 1):
        framed = {id(one.record): (one.record, with_decimals(one.frame, decimals)) for one in found}
        if not any(True for pair in framed.values() for _ in failures(task, *pair, limits)):
            return f"set model.policy.coordinate_decimals={decimals}, or leave them out"
    return "leave them out"
