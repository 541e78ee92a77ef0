"""Generate and mutate attempts, i.e. answers about a scene."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from rewardsearch.scenes import CLASSES, FRAME, LABELS, Box, Scene, random_box
from vrft.boxes import Matrix, iou_matrix
from vrft.mazes import MOVES, OPPOSITE, parse_maze
from vrft.tasks.detection import boxes_text
from vrft.types import Answer

MAX_BOXES = 100
FORMS = {
    "plain": "<think>{reasoning}</think><answer>{answer}</answer>",
    "no reasoning": "<answer>{answer}</answer>",
    "no tags": "{answer}",
    "text around": "Sure! <think>{reasoning}</think><answer>{answer}</answer>",
    "two answers": "<think>{reasoning}</think><answer>[]</answer><answer>{answer}</answer>",
    "answer in reasoning": "<think><answer>{answer}</answer></think><answer>{answer}</answer>",
    "cut off": "<think>{reasoning}</think><answer>{answer}",
}
REASONING = ("", "2 cat", "hm " * 300, "the answer is No Objects")
UNREADABLE = "<think>1</think><answer>?!</answer>"


@dataclass(frozen=True)
class Item:
    """A box of an answer, with its confidence in hundredths."""

    box: Box
    confidence: int
    label: str


@dataclass(frozen=True)
class Attempt:
    """The content of an answer. `words` is the content of an answer without boxes."""

    items: tuple[Item, ...] = ()
    words: str = ""
    form: str = "plain"
    reasoning: str = ""

    @property
    def uniform(self) -> bool:
        """Whether all boxes have the same confidence."""
        return len({item.confidence for item in self.items}) < 2

    def answer(self, scene: Scene) -> Answer:
        """Write the completion and parse it."""
        text = FORMS[self.form].format(reasoning=self.reasoning, answer=self.content(scene))
        return scene.task.parse(text, scene, FRAME)

    def content(self, scene: Scene) -> str:
        if self.words:
            return self.words
        if scene.kind == "grounding":
            return ",".join(f"({x0},{y0}),({x1},{y1})" for x0, y0, x1, y1 in (item.box for item in self.items))
        labels = [item.label for item in self.items] if scene.kind == "labelled boxes" else []
        return boxes_text([item.box for item in self.items], [item.confidence / 100 for item in self.items], labels)


def truth(scene: Scene) -> Attempt:
    return Attempt(tuple(Item(box, 100, label) for box, label in scene.boxes), scene.words)


def start(rng: random.Random, scene: Scene) -> Attempt:
    """Return the truth, garbage or a random answer."""
    kind = rng.choice(["truth", "garbage", "random", "empty"])
    if kind == "truth":
        return truth(scene)
    if scene.words:
        return Attempt(words=random_words(rng, scene))
    if kind == "empty":
        return Attempt()
    confidence, count = rng.randint(0, 100), rng.randint(1, 2 * len(scene.boxes) + 3)
    if scene.kind == "grounding":
        count = 1
    draw = random_box if kind == "garbage" else lambda rng: near(rng, scene)
    return Attempt(tuple(Item(draw(rng), confidence, label_of(rng, scene)) for _ in range(count)))


def label_of(rng: random.Random, scene: Scene) -> str:
    return rng.choice([*scene.query.split(", "), *([*LABELS, "unknown"] if rng.random() < 0.1 else [])])


def near(rng: random.Random, scene: Scene) -> Box:
    """Return an object's box, possibly moved or stretched by up to half of its sides, or any box if there are none."""
    return jittered(rng, rng.choice(scene.boxes)[0]) if scene.boxes else random_box(rng)


def jittered(rng: random.Random, box: Box) -> Box:
    if rng.random() < 0.3:
        return box
    strength = rng.choice([0.05, 0.2, 0.5])
    sides = []
    for low, high in ((box[0], box[2]), (box[1], box[3])):
        reach = max(1, round(strength * (high - low)))
        a, b = (min(1000, max(0, value + rng.randint(-reach, reach))) for value in (low, high))
        sides.append((min(a, b), max(a, b)))
    (x0, x1), (y0, y1) = sides
    return x0, y0, x1, y1


def random_words(rng: random.Random, scene: Scene) -> str:
    true = scene.words
    if scene.kind == "mazes":
        return " ".join(random_moves(rng, scene))
    number = str(int(true) + rng.randint(-3, 3)) if true.isdecimal() else "3"
    return rng.choice(
        [*CLASSES, true, true.upper(), f" {true}. ", f"{true} or rose", ", ".join(CLASSES), number, true[:1], "-", "0"]
    )


def random_moves(rng: random.Random, scene: Scene) -> list[str]:
    """Return the right moves, a part of them, the right moves and more, other moves, or a legal random walk."""
    maze, right = parse_maze(scene.query), scene.words.split()
    walk = [rng.choice(maze.moves_from(maze.start))]
    for _ in range(rng.randint(0, 2 * len(right))):
        walk.append(rng.choice(maze.moves_from(maze.walk(walk)[-1])))
    i, other = rng.randrange(len(right) + 1), rng.choice([*MOVES])
    turned = [other, OPPOSITE[other]]
    return rng.choice(
        [
            right,
            right[: max(i, 1)],
            [*right, other],
            [*right[:i], other, *right[i:]],
            [*right[:i], *turned, *right[i:]],
            [*right[:i], other, *right[i + 1 :]],
            walk,
            [rng.choice([*MOVES]) for _ in range(rng.randint(1, 30))],
            turned * rng.choice([1, 5, 500]),
        ]
    )


def mutated(rng: random.Random, scene: Scene, attempt: Attempt, uniform: bool) -> Attempt:
    """Return an attempt with one to three changes. If `uniform`, all boxes have the same confidence."""
    for _ in range(rng.choice([1, 1, 2, 3])):
        attempt = changed(rng, scene, attempt)
    if uniform and not attempt.uniform:
        same = attempt.items[0].confidence
        attempt = replace(attempt, items=tuple(replace(item, confidence=same) for item in attempt.items))
    return replace(attempt, items=attempt.items[:MAX_BOXES])


def changed(rng: random.Random, scene: Scene, attempt: Attempt) -> Attempt:
    if rng.random() < 0.04:
        return replace(attempt, form=rng.choice(list(FORMS)), reasoning=rng.choice(REASONING))
    if scene.words:
        return replace(attempt, words=random_words(rng, scene))
    items = list(attempt.items)
    change = rng.choice(CHANGES)
    if not items or (change == "add" and scene.kind != "grounding"):
        confidence = items[0].confidence if items and rng.random() < 0.5 else rng.randint(0, 100)
        draw = rng.choice([near(rng, scene), near(rng, scene), random_box(rng)])
        new = [Item(draw, confidence, label_of(rng, scene))] * rng.choice([1, 1, 1, 2, 5, 20])
        items += new[:1] if scene.kind == "grounding" else new
        return replace(attempt, items=tuple(items))
    i = rng.randrange(len(items))
    if change in TOGETHER:
        return replace(attempt, items=tuple(TOGETHER[change](rng, scene, items)))
    items[i : i + 1] = list(replaced(rng, scene, items[i], change))
    if change == "merge" and len(items) > 1:
        other = items.pop(rng.randrange(len(items)))
        a, b = items[0].box, other.box
        items[0] = replace(items[0], box=(min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])))
    return replace(attempt, items=tuple(items))


def replaced(rng: random.Random, scene: Scene, item: Item, change: str) -> list[Item]:
    """Return the boxes that replace a changed box."""
    x0, y0, x1, y1 = item.box
    if change == "remove" and scene.kind != "grounding":
        return []
    if change == "double" and scene.kind != "grounding":
        return [item, replace(item, box=jittered(rng, item.box))]
    if change == "split" and x1 - x0 > 1 and scene.kind != "grounding":
        middle = rng.randint(x0 + 1, x1 - 1)
        return [replace(item, box=(x0, y0, middle, y1)), replace(item, box=(middle, y0, x1, y1))]
    if change == "move":
        return [replace(item, box=jittered(rng, item.box))]
    if change == "place":
        whole = (0, 0, 1000, 1000)
        return [replace(item, box=rng.choice([near(rng, scene), random_box(rng), whole, (x0, y0, x0, y1)]))]
    if change == "label":
        return [replace(item, label=label_of(rng, scene))]
    if change == "confidence":
        return [replace(item, confidence=rng.choice([0, 100, rng.randint(0, 100)]))]
    return [item]


def one_confidence(rng: random.Random, _: Scene, items: list[Item]) -> list[Item]:
    value = rng.choice([0, 100, rng.randint(0, 100)])
    return [replace(item, confidence=value) for item in items]


def new_confidences(rng: random.Random, _: Scene, items: list[Item]) -> list[Item]:
    values = rng.choice([(0, 100), range(101)])
    return [replace(item, confidence=rng.choice(values)) for item in items]


def informed_confidences(rng: random.Random, scene: Scene, items: list[Item]) -> list[Item]:
    """Set confidences by whether boxes overlap an object, or oppositely."""
    right, wrong = rng.choice([(100, 0), (0, 100), (100, 100), (0, 0)])
    near_it = overlaps(scene, items).max(axis=1, initial=0) > 0.5
    return [replace(item, confidence=right if near else wrong) for item, near in zip(items, near_it, strict=True)]


def exact(rng: random.Random, scene: Scene, items: list[Item]) -> list[Item]:
    """Replace all or half of the boxes that overlap an object by the object's box."""
    share, found = rng.choice([0.5, 1.0]), overlaps(scene, items)
    return [
        replace(item, box=scene.boxes[row.argmax()][0]) if row.max(initial=0) > 0 and rng.random() < share else item
        for item, row in zip(items, found, strict=True)
    ]


def loose(rng: random.Random, scene: Scene, items: list[Item]) -> list[Item]:
    """Shorten all boxes to slightly more or slightly less than half."""
    share = rng.choice([0.51, 0.6, 0.49])
    boxes = [item.box for item in items]
    shorter = [(x0, y0, x0 + round(share * (x1 - x0)), y1) for x0, y0, x1, y1 in boxes]
    return [replace(item, box=box) for item, box in zip(items, shorter, strict=True)]


def exchanged(rng: random.Random, _: Scene, items: list[Item]) -> list[Item]:
    """Exchange the positions, the confidences or the labels of two boxes."""
    i, j = rng.randrange(len(items)), rng.randrange(len(items))
    name = rng.choice(["box", "confidence", "label"])
    items[i], items[j] = (replace(items[a], **{name: getattr(items[b], name)}) for a, b in ((i, j), (j, i)))
    return items


def relabelled(rng: random.Random, scene: Scene, items: list[Item]) -> list[Item]:
    """Permute the labels, or give all boxes the same label."""
    labels = [item.label for item in items]
    rng.shuffle(labels)
    new = rng.choice([labels, [label_of(rng, scene)] * len(items)])
    return [replace(item, label=label) for item, label in zip(items, new, strict=True)]


def overlaps(scene: Scene, items: Sequence[Item]) -> Matrix:
    return iou_matrix([item.box for item in items], [box for box, _ in scene.boxes])


def half(rng: random.Random, _: Scene, items: list[Item]) -> list[Item]:
    return rng.sample(items, (len(items) + 1) // 2)


TOGETHER: dict[str, Callable[[random.Random, Scene, list[Item]], list[Item]]] = {
    "one confidence": one_confidence,
    "new confidences": new_confidences,
    "informed confidences": informed_confidences,
    "exact": exact,
    "loose": loose,
    "exchange": exchanged,
    "relabel": relabelled,
    "order": lambda rng, _, items: rng.sample(items, len(items)),
    "move all": lambda rng, _, items: [replace(item, box=jittered(rng, item.box)) for item in items],
    "half": half,
    "twice": lambda rng, scene, items: items if scene.kind == "grounding" else items * rng.choice([2, 2, 5]),
    "all but one": lambda rng, scene, items: items if scene.kind == "grounding" else rng.sample(items, 1),
    "empty": lambda *_: [],
}
"""Changes of all boxes at once."""
ALONE = ("add", "remove", "double", "split", "move", "move", "place", "label", "confidence", "merge")
CHANGES = (*ALONE, *ALONE, *TOGETHER)
