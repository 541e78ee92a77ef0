"""Evaluate the accuracy of answers that are names, letters or numbers."""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from lightning.pytorch.loggers import Logger
from PIL import Image, ImageDraw, ImageFont

from vrft.answers import normalise_label
from vrft.evaluators.base import Evaluator
from vrft.loggers import show_picture, show_table
from vrft.types import Answer, Sample
from vrft.utils.files import write_table

NO_CLASS = "(none of them)"
CELL, LABEL_WIDTH = 18, 150
MAX_CLASSES_DRAWN = 60


class Row(NamedTuple):
    """One answer: the true and the answered name, normalised. `named` is None if the answer can't be parsed."""

    true: str
    named: str | None
    valid: bool


class AccuracyEvaluator(Evaluator[Row]):
    """Logs `val/accuracy`, `val/class_accuracy` (the mean over classes) and `val/valid`.

    Names are compared as in the `Accuracy` reward, and unreadable answers are wrong. Writes a table of class accuracies
    and a picture of the confusion matrix.
    """

    def row(self, answer: Answer, sample: Sample) -> Row:
        assert isinstance(sample.target, str)
        named = normalise_label(answer.value) if isinstance(answer.value, str) else None
        return Row(normalise_label(sample.target), named, answer.valid)

    def scores(self, rows: list[Row]) -> dict[str, float]:
        each = per_class(rows)
        return {
            "accuracy": sum(row.named == row.true for row in rows) / len(rows),
            "class_accuracy": sum(each.values()) / len(each),
            "valid": sum(row.valid for row in rows) / len(rows),
        }

    def quality(self, row: Row) -> float:
        return float(row.named == row.true)

    def write(self, folder: Path, rows: list[Row]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        counts = Counter(row.true for row in rows)
        found = [(name, counts[name], value) for name, value in sorted(per_class(rows).items())]
        write_table(folder / "accuracy_per_class.csv", ["class", "images", "accuracy"], found)
        draw_confusion(rows, folder / "confusion.png")

    def show(self, loggers: Sequence[Logger], stage: str, folder: Path, step: int) -> None:
        with (folder / "accuracy_per_class.csv").open(newline="", encoding="utf-8") as file:
            header, *lines = csv.reader(file)
        rows = [[name, int(count), float(accuracy)] for name, count, accuracy in lines]
        show_table(loggers, f"{stage}/per_class", header, rows, step)
        with Image.open(folder / "confusion.png") as picture:
            show_picture(loggers, f"{stage}/confusion", picture, step)


def per_class(rows: Sequence[Row]) -> dict[str, float]:
    """Return the accuracy of each class."""
    right = defaultdict(list)
    for row in rows:
        right[row.true].append(row.named == row.true)
    return {name: sum(values) / len(values) for name, values in right.items()}


def draw_confusion(rows: Sequence[Row], path: Path) -> None:
    """Draw the confusion matrix of the most frequent classes: true classes by answers, as shares of each true class."""
    names = [name for name, _ in Counter(row.true for row in rows).most_common(MAX_CLASSES_DRAWN)]
    names.sort()
    index = {name: i for i, name in enumerate(names)}
    counts = np.zeros((len(names), len(names) + 1))
    for row in rows:
        if row.true in index:
            counts[index[row.true], index.get(row.named or "", len(names))] += 1
    shares = counts / counts.sum(1, keepdims=True)
    size = LABEL_WIDTH + CELL * (len(names) + 1) + 10, LABEL_WIDTH + CELL * len(names) + 10
    picture = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(11)
    for i, line in enumerate(shares):
        pen.text((5, LABEL_WIDTH + CELL * i + 2), names[i][:24], fill="black", font=font)
        for j, share in enumerate(line):
            corner = LABEL_WIDTH + CELL * j, LABEL_WIDTH + CELL * i
            colour = (255 - int(205 * share), 255 - int(165 * share), 255 - int(55 * share))
            pen.rectangle([corner, (corner[0] + CELL - 1, corner[1] + CELL - 1)], fill=colour)
    for j, name in enumerate([*names, NO_CLASS]):
        strip = Image.new("RGB", (LABEL_WIDTH, CELL), "white")
        ImageDraw.Draw(strip).text((2, 2), name[:24], fill="black", font=font)
        picture.paste(strip.rotate(90, expand=True), (LABEL_WIDTH + CELL * j, 0))
    picture.save(path)
