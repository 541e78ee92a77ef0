"""Guards over what completions say: their format, their boxes and their confidences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from vrft.answers import format_error
from vrft.boxes import Box, iou_matrix
from vrft.guards.base import WINDOW, Guard, Seen, mean
from vrft.guards.training import numbers
from vrft.types import Answer, Detection, Sample

FEW_VALID = 0.01
"""Share of completions in the right format that counts as none."""

ENOUGH = 40
"""Boxes or answers in a window below which nothing is said about them."""

EXAMINED = 128
"""Completions of a rollout that are looked at."""

WHOLE, ALWAYS = 0.9, 0.9
"""Share of the image's area from which on a box is all of it; share of boxes from which on that is always so."""

SAME, GRID = 0.8, 50
"""Share of answers with the same boxes, in steps of 1 / GRID of the image, that is always the same."""

TWIN, DUPLICATES = 0.9, 0.3
"""IoU with an earlier box of its answer and label that makes a box a duplicate; share of boxes that may be."""

EQUAL = 0.95
"""Share of boxes with the same confidence that is always the same."""


class NoFormat(Guard):
    """Nothing can be read, or the format is never right: the commonest reason is named."""

    name = "no_format"

    def note(self, seen: Seen) -> list[Any] | None:
        found = numbers(seen, "train/valid", "train/truncated")
        if found is None:
            return None
        faults = Counter(fault(answer, seen.reasoning) for answer in seen.answers[:EXAMINED] if not answer.valid)
        return [*found, dict(faults)]

    def judge(self, seen: Seen) -> str | None:
        if mean([valid for valid, *_ in self.recent]) > FEW_VALID:
            return None
        cut = mean([truncated for _, truncated, _ in self.recent])
        if cut >= 0.5:
            reason = (
                f"{cut:.0%} are cut off at model.max_completion_length={seen.limit}; a higher limit, or a prompt that "
                "asks for less"
            )
        else:
            faults: Counter[str] = Counter()
            for *_, found in self.recent:
                faults.update(found)
            (commonest, count), *_ = faults.most_common(1) or [("unknown", 0)]
            reason = (
                f"most often ({count / max(faults.total(), 1):.0%}) {commonest}; read transcripts.jsonl, and say the "
                "form in task.template, or begin with some steps of SFT"
            )
        return f"no completion of the last {WINDOW} rollouts is in the right format: {reason}"


class WholeImage(Guard):
    """Boxes are always the whole image, where true ones are not."""

    name = "whole_image"

    def note(self, seen: Seen) -> list[int] | None:
        boxes = [
            share_of(box.box, sample) >= WHOLE
            for sample, answer in answered(seen)
            if not any(share_of(true.box, sample) >= WHOLE for true in detections(sample.target))
            for box in detections(answer.value)
        ]
        return [sum(boxes), len(boxes)] if boxes else None

    def judge(self, seen: Seen) -> str | None:
        whole, count = map(sum, zip(*self.recent, strict=True))
        if count < ENOUGH or whole < ALWAYS * count:
            return None
        return (
            f"{whole / count:.0%} of the last {count} boxes are the whole image, and the true ones are not; are "
            "policy.coordinates those of the checkpoint (vrft doctor tells), is the IoU reward's threshold too low"
        )


class SameBox(Guard):
    """Answers are always the same boxes, whatever the image."""

    name = "same_box"

    def note(self, seen: Seen) -> list[Any] | None:
        said, true = Counter[str](), Counter[str]()
        for sample, answer in answered(seen):
            boxes = detections(answer.value)
            if boxes and not all(share_of(box.box, sample) >= WHOLE for box in boxes):
                said[on_grid(boxes, sample)] += 1
                true[on_grid(detections(sample.target), sample)] += 1
        if not said:
            return None
        return [*said.most_common(1)[0], said.total(), *true.most_common(1)[0]]

    def judge(self, seen: Seen) -> str | None:
        said, true = Counter[str](), Counter[str]()
        for key, count, _, true_key, true_count in self.recent:
            said[key] += count
            true[true_key] += true_count
        commonest, same = said.most_common(1)[0]
        total = sum(entry[2] for entry in self.recent)
        if total < ENOUGH or same < SAME * total or true.most_common(1)[0][1] > same / 2:
            return None
        return (
            f"{same / total:.0%} of the last {total} answers with boxes give the same ones whatever the image (in "
            f"fiftieths of it: {commonest}); does the model see its images (vrft doctor draws them), is the learning "
            "rate too high"
        )


class DuplicateBoxes(Guard):
    """The same object is boxed more than once."""

    name = "duplicate_boxes"

    def note(self, seen: Seen) -> list[int] | None:
        found = [detections(answer.value) for _, answer in answered(seen)]
        total = sum(map(len, found))
        return [sum(map(duplicates, found)), total] if total else None

    def judge(self, seen: Seen) -> str | None:
        twins, total = map(sum, zip(*self.recent, strict=True))
        if total < ENOUGH or twins < DUPLICATES * total:
            return None
        return (
            f"{twins / total:.0%} of the last {total} boxes repeat another one of their answer; a reward that counts "
            "them (DetectionIoU, DetectionF1), and no reward that grows with the number of boxes"
        )


class EqualConfidences(Guard):
    """Every box has the same confidence, so that average precision can't order them."""

    name = "equal_confidences"

    def note(self, seen: Seen) -> list[Any] | None:
        scores = Counter(
            round(box.score, 2)
            for _, answer in answered(seen)
            for box in detections(answer.value)
            if box.score is not None
        )
        return [*scores.most_common(1)[0], scores.total()] if scores else None

    def judge(self, seen: Seen) -> str | None:
        score = Counter(score for score, *_ in self.recent).most_common(1)[0][0]
        same, total = sum(n for s, n, _ in self.recent if s == score), sum(entry[2] for entry in self.recent)
        if total < ENOUGH or same < EQUAL * total:
            return None
        return (
            f"{same / total:.0%} of the last {total} boxes state a confidence of {score:.2f}, so that average "
            "precision can't order them; a DetectionConfidence reward, or the evaluator's confidence=logprob"
        )


def fault(answer: Answer, reasoning: bool) -> str:
    """Why a completion is not valid."""
    if not answer.text.strip():
        return "it is empty"
    if answer.well_formed:
        return "the answer block can't be read"
    return format_error(answer.text, reasoning)


def answered(seen: Seen) -> Iterator[tuple[Sample, Answer]]:
    """Completions that give boxes, with their samples."""
    group = len(seen.answers) // max(len(seen.samples), 1)
    for n, answer in enumerate(seen.answers[:EXAMINED]):
        if isinstance(answer.value, tuple):
            yield seen.samples[n // group], answer


def detections(value: object) -> tuple[Detection, ...]:
    """The boxes of a target or an answer; none if it is a text."""
    return value if isinstance(value, tuple) else ()


def share_of(box: Box, sample: Sample) -> float:
    """A box's share of the image's area."""
    x0, y0, x1, y1 = box
    width, height = sample.size
    return (x1 - x0) * (y1 - y0) / (width * height)


def on_grid(boxes: Sequence[Detection], sample: Sample) -> str:
    """Boxes in coarse steps of the image, in an order of their own, as text."""
    sides = (*sample.size, *sample.size)
    coarse = sorted([round(GRID * v / side) for v, side in zip(box.box, sides, strict=True)] for box in boxes)
    return " ".join(map(str, coarse))


def duplicates(boxes: Sequence[Detection]) -> int:
    """How many boxes repeat an earlier one with their label.

    >>> twice = [Detection((0, 0, 10, 10), "cat"), Detection((0, 0, 10, 10), "cat")]
    >>> duplicates(twice), duplicates([twice[0], twice[1]._replace(label="dog")])
    (1, 0)
    """
    if len(boxes) < 2:
        return 0
    corners, labels = [box.box for box in boxes], np.array([box.label for box in boxes])
    twins = (iou_matrix(corners, corners) >= TWIN) & (labels[:, None] == labels)
    return int(np.tril(twins, -1).any(1).sum())
