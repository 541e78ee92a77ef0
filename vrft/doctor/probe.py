"""Probe the data with the model's answers, to find out whether their numbers are read correctly.

Coordinates in the wrong frame, swapped x and y, or category ids that are off by one look valid in every file. If the
model finds objects at all, its answers reveal such errors: they fit another reading of the numbers better.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console

from vrft.answers import read_boxes, split_blocks
from vrft.boxes import FRAMES, Box, from_frame, iou_matrix, matched_iou
from vrft.data import RecordData, SolutionData, VisionData
from vrft.policy.image_size import AREA_PROCESSORS, FRAME_AREA_PROCESSORS, is_a
from vrft.policy.processor import Encoder
from vrft.training.module import VisionModule
from vrft.types import Answer, Frame, Id, Sample
from vrft.utils.display import visible

MAX_PARAMETERS_ON_CPU = 200_000_000
"""Maximum size of a model that is probed without a GPU. Larger models would take minutes."""

UNBOUNDED = Frame(10**9, 10**9)
MIN_GAIN = 0.1
"""Minimum gain in mean IoU of a better reading, which must also be half of the configured reading's IoU."""

MAX_PROBLEMS = 3
"""Maximum number of reasons for invalid answers that are printed."""

POSITION = re.compile(r" at character \d+")
"""Positions in reasons, which are removed to count equal reasons together."""

MIN_PROMPTS = 8
"""Minimum number of prompts to judge a reading."""


class ProbedSample(NamedTuple):
    """The model's answer about a sample, and its boxes in the coordinates of the answer."""

    sample: Sample
    frame: Frame
    boxes: list[Box]
    answer: Answer


class Fit(NamedTuple):
    """IoU of each prompt under another reading of the data and under the configured reading."""

    reading: str
    other: list[float]
    configured: list[float]

    @property
    def gain(self) -> float:
        """The mean difference in IoU."""
        return float(np.subtract(self.other, self.configured).mean())

    @property
    def is_better(self) -> bool:
        """Whether the gain is large, and above three standard errors of the difference."""
        difference = np.subtract(self.other, self.configured)
        error = float(difference.std(ddof=1)) / len(difference) ** 0.5
        return self.gain > max(MIN_GAIN, 0.5 * float(np.mean(self.configured)), 3 * error)


Reading = Callable[[Box, ProbedSample], Box]


def check_readings(module: VisionModule, data: VisionData, probe: int, console: Console) -> Iterator[str]:
    """Yield a problem if the model's boxes fit another reading of the data clearly better than the configured one."""
    policy = module.policy
    family = policy.family_coordinates
    disagrees = None not in (family, policy.coordinates) and policy.coordinates != family
    mismatch = (
        f"model.policy.coordinates={policy.coordinates}, but a {policy.base.config.model_type} was trained with "
        f"{family}"
    )
    large = (
        sum(parameter.numel() for parameter in policy.parameters()) > MAX_PARAMETERS_ON_CPU
        and module.device.type == "cpu"
    )
    samples = choose(data, probe)
    if large or not samples:
        if large:
            console.print("the model was not probed: it is large and there is no GPU")
        if disagrees:
            yield mismatch
        return
    seen = ask(module, data, samples)
    right = print_formats(seen, console)
    if not right and module.group_size > 1:
        yield (
            f"none of {len(seen)} answers has the required format, so all would earn the same: train with vrft.SFT "
            f"first, or change task.template; the first answer is {seen[0].answer.text[:100]!r}"
        )
    seen = [one for one in seen if isinstance(one.sample.target, tuple) and one.sample.target]
    if not seen:
        return
    base = overlaps(seen, as_configured)
    console.print(f"the model's own boxes, before training: mean IoU {np.mean(base):.3f} on {len(seen)} prompts")
    fits = [Fit(name, overlaps(seen, reading), base) for name, reading in readings(policy.processor, seen).items()]
    if isinstance(data, SolutionData) and data.coordinates == "thousandths":
        reading = "the data's boxes, configured as thousandths, are pixels (data.coordinates=pixels)"
        fits.append(Fit(reading, overlaps(seen, as_shrunk), base))
    if isinstance(data, RecordData):
        fits += shifted_categories(seen, data)
    best = max((fit for fit in fits if len(fit.other) >= MIN_PROMPTS), key=lambda fit: fit.gain, default=None)
    if best is not None and best.is_better:
        yield (
            f"the model's own boxes fit the data better if {best.reading}: mean IoU {np.mean(best.other):.3f} instead "
            f"of {np.mean(best.configured):.3f} on {len(best.other)} prompts"
        )
    elif disagrees and np.mean(base) < MIN_GAIN:
        yield mismatch


def print_formats(seen: Sequence[ProbedSample], console: Console) -> int:
    """Print how many answers are in the right format and why the others are invalid. Return the first number."""
    right = sum(one.answer.well_formed for one in seen)
    console.print(f"the model's own answers, before training: {right} of {len(seen)} in the right format")
    problems = Counter(
        POSITION.sub("", one.answer.problem) for one in seen if one.answer.problem is not None
    ).most_common()
    for problem, count in problems[:MAX_PROBLEMS]:
        console.print(f"  {count} of {len(seen)} not valid: {visible(problem)}", markup=False)
    if others := sum(count for _, count in problems[MAX_PROBLEMS:]):
        console.print(f"  {others} of {len(seen)} not valid for other reasons")
    unexplained = len(seen) - right - sum(count for _, count in problems)
    if unexplained > 0:
        console.print(f"  {unexplained} of {len(seen)} can be read, but are not in the required format")
    return right


def choose(data: VisionData, count: int) -> list[Sample]:
    """Choose evenly spread training samples, preferably of images with several categories, which reveal more."""
    dataset = data.train_set()
    size: int = len(dataset)  # type: ignore[arg-type]
    if not count:
        return []
    indices = [*range(size)]
    if isinstance(data, RecordData):
        records = data.train_set().records
        prompts = Counter(record.image_id for record in records)
        several = [index for index in indices if prompts[records[index].image_id] > 1]
        alone = [index for index in indices if prompts[records[index].image_id] == 1]
        indices = several if len(several) >= count else several + alone[: count - len(several)]
    return [dataset[index] for index in indices[:: -(-len(indices) // count)]]


@torch.no_grad()
def ask(module: VisionModule, data: VisionData, samples: Sequence[Sample]) -> list[ProbedSample]:
    """Return the model's greedy answers."""
    seen = []
    for start in range(0, len(samples), 16):
        batch = module.encoder(list(samples[start : start + 16]))
        batch = data.transfer_batch_to_device(batch, module.device, 0)
        answers = module.predict_step(batch, 0)
        for answer, sample, frame in zip(answers, batch.samples, batch.frames, strict=True):
            items = read_boxes(split_blocks(answer.text).answer or "", UNBOUNDED) or []
            seen.append(ProbedSample(sample, frame, [item.box for item in items], answer))
    return seen


def as_configured(box: Box, seen: ProbedSample) -> Box:
    """Read numbers in the frame that the prompt states."""
    return from_frame(box, seen.sample.size, seen.frame)


def as_shrunk(box: Box, seen: ProbedSample) -> Box:
    """Return the position of a box if the data's pixels had been taken for thousandths."""
    (width, height), (x0, y0, x1, y1) = seen.sample.size, as_configured(box, seen)
    return x0 * width / 1000, y0 * height / 1000, x1 * width / 1000, y1 * height / 1000


def readings(processor: object, seen: Sequence[ProbedSample]) -> dict[str, Reading]:
    """Return alternative readings of the numbers in an answer, by description."""

    def swapped(box: Box, one: ProbedSample) -> Box:
        (width, height), (x0, y0, x1, y1) = one.sample.size, as_configured(box, one)
        return y0 * width / height, x0 * height / width, y1 * width / height, x1 * height / width

    def sides(box: Box, one: ProbedSample) -> Box:
        return as_configured((box[0], box[1], box[0] + box[2], box[1] + box[3]), one)

    found: dict[str, Reading] = {
        "x and y are swapped (in the data, or in the model's training)": swapped,
        "its numbers are x, y, width and height": sides,
        "its numbers are pixels of the original image": lambda box, _: box,
    }
    for coordinates, frame in FRAMES.items():
        if frame != seen[0].frame:
            found[f"its numbers are {coordinates} (model.policy.coordinates={coordinates})"] = (
                lambda box, one, frame=frame: from_frame(box, one.sample.size, frame)  # type: ignore[misc]
            )
    if is_a(processor.image_processor, (*AREA_PROCESSORS, *FRAME_AREA_PROCESSORS)):  # type: ignore[attr-defined]
        resized = Encoder(processor, None, "pixels")  # type: ignore[arg-type]
        found["its numbers are pixels of the resized image (model.policy.coordinates=pixels)"] = lambda box, one: (
            from_frame(box, one.sample.size, resized.frame(one.sample.image))
        )
    return found


def overlaps(seen: Sequence[ProbedSample], reading: Reading) -> list[float]:
    """Return matched IoU / max(predicted, true boxes) of each prompt."""
    return [overlap([reading(box, one) for box in one.boxes], one.sample) for one in seen]


def overlap(boxes: Sequence[Box], sample: Sample) -> float:
    """Return matched IoU / max(predicted, true boxes) of one sample."""
    assert isinstance(sample.target, tuple)
    return matched(boxes, [true.box for true in sample.target])


def matched(boxes: Sequence[Box], true: Sequence[Box]) -> float:
    """Return matched IoU / max(predicted, true boxes), with equal confidences."""
    return matched_iou(iou_matrix(boxes, true), [1.0] * len(boxes))


def shifted_categories(seen: Sequence[ProbedSample], data: RecordData) -> Iterator[Fit]:
    """Yield how boxes fit the category before and the one after the requested category, in images that have it.

    A good fit means that category ids are off by one.
    """
    ordered = data.ordered_categories()
    index = {name: i for i, name in enumerate(ordered)}
    boxes: dict[tuple[Id, str], list[Box]] = defaultdict(list)
    for record in data.train_set().records:
        if isinstance(record.target, tuple):
            boxes[record.image_id, record.query] += [true.box for true in record.target]
    for step, side in ((-1, "before"), (1, "after")):
        fits = Fit(f"objects are labelled with the category {side} their own: ids are off by one", [], [])
        for one in seen:
            other = ordered[(index[one.sample.query] + step) % len(ordered)] if one.sample.query in index else ""
            if true := boxes[one.sample.image_id, other]:
                read = [as_configured(box, one) for box in one.boxes]
                fits.other.append(matched(read, true))
                fits.configured.append(overlap(read, one.sample))
        yield fits
