"""Scenes, i.e. ground truth without pixels, and the quality of answers about them."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching

from vrft.answers import normalise_label
from vrft.boxes import from_frame, iou_matrix
from vrft.mazes import random_maze
from vrft.tasks import (
    ClassificationTask,
    CountingTask,
    DetectionTask,
    GroundingTask,
    MazeTask,
    MultiCategoryDetectionTask,
    Task,
)
from vrft.types import Answer, Detection, Frame, Target

FRAME = Frame(1000, 1000)
LABELS = ("cat", "dog", "traffic light")
CLASSES = ("Boeing 717", "Boeing 737-200", "rose", "pink primrose", "7")
TASKS: dict[str, Task] = {
    "boxes": DetectionTask(),
    "labelled boxes": MultiCategoryDetectionTask(),
    "grounding": GroundingTask(),
    "classes": ClassificationTask(),
    "counts": CountingTask(),
    "mazes": MazeTask(),
}
SIZES = ((56, 56), (640, 480), (4000, 3000), (31, 977))
Box = tuple[int, int, int, int]
"""Corners in thousandths of the image."""


@dataclass(frozen=True)
class Scene:
    """A question and its ground truth. Implements `vrft.types.Question`."""

    kind: str
    query: str
    boxes: tuple[tuple[Box, str], ...]
    words: str
    size: tuple[int, int]
    image_id: int = 0
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def task(self) -> Task:
        return TASKS[self.kind]

    @cached_property
    def target(self) -> Target:
        if self.words:
            return self.words
        return tuple(Detection(from_frame(box, self.size, FRAME), label) for box, label in self.boxes)

    def with_boxes(self, boxes: tuple[tuple[Box, str], ...]) -> Scene:
        return replace(self, boxes=boxes)


def random_box(rng: random.Random) -> Box:
    """Draw a box with a width from 1 to 1,000 thousandths, with small and large boxes equally often."""
    sides = []
    for _ in range(2):
        length = min(1000, max(1, round(10 ** rng.uniform(0, 3))))
        start = rng.randint(0, 1000 - length)
        sides.append((start, start + length))
    (x0, x1), (y0, y1) = sides
    return x0, y0, x1, y1


def random_scene(rng: random.Random, kind: str) -> Scene:
    """Draw a scene with 0 to 20 objects, some at the same position, or a class, a number or a maze."""
    size = rng.choice(SIZES)
    if kind == "mazes":
        maze = random_maze(rng, rng.choice([2, 3, 4, 5, 8]))
        return Scene(kind, maze.text, (), " ".join(maze.path()), size)
    if kind in ("classes", "counts"):
        words = rng.choice(CLASSES) if kind == "classes" else str(rng.choice([0, 1, 2, 7, 20, 1000]))
        return Scene(kind, "cat", (), words, size)
    labels = LABELS[: rng.randint(1, 3)] if kind == "labelled boxes" else LABELS[:1]
    count = 1 if kind == "grounding" else rng.choice([0, 1, 1, 2, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20])
    boxes: list[tuple[Box, str]] = []
    for _ in range(count):
        box = rng.choice(boxes)[0] if boxes and rng.random() < 0.1 else random_box(rng)
        boxes.append((box, "" if kind == "grounding" else rng.choice(labels)))
    return Scene(kind, ", ".join(labels), tuple(boxes), "", size)


def hits(answer: Answer, scene: Scene) -> int:
    """Return the largest number of objects that can be matched to boxes of their label with IoU above 0.5."""
    found, true = answer.value, scene.target
    if not isinstance(found, tuple) or not isinstance(true, tuple) or not found or not true:
        return 0
    same = np.array([[normalise_label(a.label) == normalise_label(b.label) for b in true] for a in found])
    near = iou_matrix([a.box for a in found], [b.box for b in true]) > 0.5
    return int((maximum_bipartite_matching(csr_matrix(same & near), perm_type="column") >= 0).sum())


def f1(answer: Answer, scene: Scene) -> float:
    """Return the quality of an answer: F1 for boxes, 1 or 0 for a text, 0 if the answer can't be read."""
    if answer.value is None:
        return 0.0
    if isinstance(scene.target, str):
        return float(isinstance(answer.value, str) and normalise_label(answer.value) == normalise_label(scene.target))
    total = len(answer.value) + len(scene.target)
    return 2 * hits(answer, scene) / total if total else 1.0
