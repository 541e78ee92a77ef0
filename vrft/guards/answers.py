"""Guards on the format, boxes and confidences of answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from vrft.answers import format_error, without_details
from vrft.boxes import Box, iou_matrix
from vrft.guards.base import WINDOW, Guard, Observation, mean
from vrft.guards.training import numbers
from vrft.types import Answer, Detection, Sample

MIN_VALID_SHARE = 0.01
"""The format counts as not learned if the share of valid completions does not exceed this."""

MIN_COUNT = 40
"""Minimum number of boxes or answers in a window for a warning."""

MAX_EXAMINED = 128
"""Maximum number of completions of a rollout to examine."""

WHOLE_IMAGE_AREA, WHOLE_IMAGE_SHARE = 0.9, 0.9
"""Share of the image's area above which a box counts as whole; share of such boxes that is a problem."""

SAME_BOX_SHARE, GRID = 0.8, 50
"""Share of answers with the same boxes, rounded to 1 / GRID of the image, that is a problem."""

DUPLICATE_IOU, DUPLICATE_SHARE = 0.9, 0.3
"""IoU with an earlier box with the same label that makes a box a duplicate; share of duplicates that is a problem."""

EQUAL_CONFIDENCE_SHARE = 0.95
"""Share of boxes with the same confidence that is a problem."""


class NoFormat(Guard):
    """Warns if hardly any completion is valid, with the most common reason."""

    name = "no_format"

    def note(self, seen: Observation) -> list[Any] | None:
        found = numbers(seen, "train/valid", "train/truncated")
        if found is None:
            return None
        faults = Counter(fault(answer, seen.reasoning) for answer in seen.answers[:MAX_EXAMINED] if not answer.valid)
        return [*found, dict(faults)]

    def judge(self, seen: Observation) -> str | None:
        if mean([valid for valid, *_ in self.recent]) > MIN_VALID_SHARE:
            return None
        cut = mean([truncated for _, truncated, _ in self.recent])
        if cut >= 0.5:
            reason = (
                f"{cut:.0%} are truncated at model.max_completion_length={seen.limit}; try a higher limit, or a prompt "
                "that asks for less"
            )
        else:
            faults: Counter[str] = Counter()
            for *_, found in self.recent:
                faults.update(found)
            (commonest, count), *_ = faults.most_common(1) or [("unknown", 0)]
            reason = (
                f"most often ({count / max(faults.total(), 1):.0%}) {commonest}; read transcripts.jsonl, and state the "
                "format in task.template, or begin with some steps of SFT"
            )
        return (
            f"at most {MIN_VALID_SHARE:.0%} of the completions of the last {WINDOW} rollouts are in the required "
            f"format: {reason}"
        )


class WholeImage(Guard):
    """Warns if almost every box covers the whole image although the true boxes do not."""

    name = "whole_image"

    def note(self, seen: Observation) -> list[int] | None:
        boxes = [
            area_share(box.box, sample) >= WHOLE_IMAGE_AREA
            for sample, answer in answered(seen)
            if not any(area_share(true.box, sample) >= WHOLE_IMAGE_AREA for true in detections(sample.target))
            for box in detections(answer.value)
        ]
        return [sum(boxes), len(boxes)] if boxes else None

    def judge(self, seen: Observation) -> str | None:
        whole, count = map(sum, zip(*self.recent, strict=True))
        if count < MIN_COUNT or whole < WHOLE_IMAGE_SHARE * count:
            return None
        return (
            f"{whole / count:.0%} of the last {count} boxes are the whole image, and the true ones are not; check "
            "whether policy.coordinates fit the checkpoint (vrft doctor) and whether the IoU reward's threshold is too "
            "low"
        )


class SameBox(Guard):
    """Warns if almost all answers have the same boxes, regardless of the image."""

    name = "same_box"

    def note(self, seen: Observation) -> list[Any] | None:
        predicted, true = Counter[str](), Counter[str]()
        for sample, answer in answered(seen):
            boxes = detections(answer.value)
            if boxes and not all(area_share(box.box, sample) >= WHOLE_IMAGE_AREA for box in boxes):
                predicted[on_grid(boxes, sample)] += 1
                true[on_grid(detections(sample.target), sample)] += 1
        if not predicted:
            return None
        return [*predicted.most_common(1)[0], predicted.total(), *true.most_common(1)[0]]

    def judge(self, seen: Observation) -> str | None:
        predicted, true = Counter[str](), Counter[str]()
        for key, count, _, true_key, true_count in self.recent:
            predicted[key] += count
            true[true_key] += true_count
        commonest, same = predicted.most_common(1)[0]
        total = sum(entry[2] for entry in self.recent)
        if total < MIN_COUNT or same < SAME_BOX_SHARE * total or true.most_common(1)[0][1] > same / 2:
            return None
        return (
            f"{same / total:.0%} of the last {total} answers with boxes give the same ones whatever the image (in "
            f"fiftieths of it: {commonest}); check whether the model sees its images (vrft doctor draws them) and "
            "whether the learning rate is too high"
        )


class DuplicateBoxes(Guard):
    """Warns if many answers box the same object more than once."""

    name = "duplicate_boxes"

    def note(self, seen: Observation) -> list[int] | None:
        found = [detections(answer.value) for _, answer in answered(seen)]
        total = sum(map(len, found))
        return [sum(map(duplicates, found)), total] if total else None

    def judge(self, seen: Observation) -> str | None:
        repeated, total = map(sum, zip(*self.recent, strict=True))
        if total < MIN_COUNT or repeated < DUPLICATE_SHARE * total:
            return None
        return (
            f"{repeated / total:.0%} of the last {total} boxes repeat another one of their answer; try a reward that "
            "penalises them (DetectionIoU, DetectionF1), and none that grows with the number of boxes"
        )


class EqualConfidences(Guard):
    """Warns if almost all boxes have the same confidence, which then carries no information."""

    name = "equal_confidences"

    def note(self, seen: Observation) -> list[Any] | None:
        scores = Counter(
            round(box.score, 2)
            for _, answer in answered(seen)
            for box in detections(answer.value)
            if box.score is not None
        )
        return [*scores.most_common(1)[0], scores.total()] if scores else None

    def judge(self, seen: Observation) -> str | None:
        score = Counter(score for score, *_ in self.recent).most_common(1)[0][0]
        same, total = sum(n for s, n, _ in self.recent if s == score), sum(entry[2] for entry in self.recent)
        if total < MIN_COUNT or same < EQUAL_CONFIDENCE_SHARE * total:
            return None
        return (
            f"{same / total:.0%} of the last {total} boxes state a confidence of {score:.2f}, which says "
            "nothing about them; try a DetectionConfidence reward"
        )


def fault(answer: Answer, reasoning: bool) -> str:
    """Explain why a completion is invalid, without details that differ between completions."""
    if not answer.text.strip():
        return "it is empty"
    if not answer.well_formed:
        return format_error(answer.text, reasoning)
    return f"the answer block can't be parsed ({without_details(answer.problem or 'no reason is known')})"


def answered(seen: Observation) -> Iterator[tuple[Sample, Answer]]:
    """Yield the answers with boxes, each with its sample."""
    group = len(seen.answers) // max(len(seen.samples), 1)
    for n, answer in enumerate(seen.answers[:MAX_EXAMINED]):
        if isinstance(answer.value, tuple):
            yield seen.samples[n // group], answer


def detections(value: object) -> tuple[Detection, ...]:
    """Return the boxes of a target or an answer; empty if it is text or None."""
    return value if isinstance(value, tuple) else ()


def area_share(box: Box, sample: Sample) -> float:
    """Return a box's share of the image's area."""
    x0, y0, x1, y1 = box
    width, height = sample.size
    return (x1 - x0) * (y1 - y0) / (width * height)


def on_grid(boxes: Sequence[Detection], sample: Sample) -> str:
    """Return boxes as text, rounded to 1 / GRID of the image and sorted."""
    sides = (*sample.size, *sample.size)
    coarse = sorted([round(GRID * v / side) for v, side in zip(box.box, sides, strict=True)] for box in boxes)
    return " ".join(map(str, coarse))


def duplicates(boxes: Sequence[Detection]) -> int:
    """Count the boxes that duplicate an earlier box with the same label.

    >>> twice = [Detection((0, 0, 10, 10), "cat"), Detection((0, 0, 10, 10), "cat")]
    >>> duplicates(twice), duplicates([twice[0], twice[1]._replace(label="dog")])
    (1, 0)
    """
    if len(boxes) < 2:
        return 0
    corners, labels = [box.box for box in boxes], np.array([box.label for box in boxes])
    same = (iou_matrix(corners, corners) >= DUPLICATE_IOU) & (labels[:, None] == labels)
    return int(np.tril(same, -1).any(1).sum())
