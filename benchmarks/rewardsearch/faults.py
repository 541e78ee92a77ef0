"""Run hill climbs in a scene, and measure the faults of a sum of rewards that they find."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from rewardsearch.attempts import MAX_BOXES, UNREADABLE, Attempt, Item, jittered, label_of, mutated, near, start, truth
from rewardsearch.scenes import FRAME, Scene, f1, hits, random_box
from vrft.boxes import iou_matrix
from vrft.rewards import Consistency, Reward
from vrft.types import Answer

MIN_GAP = 0.2
"""Minimum difference of F1 for which a pair in the wrong order is a fault."""
STEPS = 25
"""Number of mutations of a climb."""
NOTHING = -math.inf
"""Size of a fault that is impossible for an answer."""
PROBABILITIES = (0.1, 0.35, 0.6, 0.9)


@dataclass(frozen=True)
class Judged:
    """An attempt with the weighted sum of its rewards, relative to that of the truth, and its F1."""

    attempt: Attempt
    answer: Answer
    reward: float
    f1: float


@dataclass
class Judge:
    """Scores attempts in a scene."""

    rewards: Sequence[Reward]
    scene: Scene
    answers: int = 0
    """Number of scored answers."""
    scale: float = 1.0

    def __post_init__(self) -> None:
        self.truth = truth(self.scene).answer(self.scene)
        self.scale = self.total(self.truth)

    def total(self, answer: Answer, scene: Scene | None = None) -> float:
        """Return the weighted sum of an answer's rewards. `Consistency` compares the answer with five true answers."""
        self.answers += 1
        about = scene or self.scene
        total = 0.0
        for reward in self.rewards:
            group = [answer, *[replace(self.truth)] * 5] if isinstance(reward, Consistency) else [answer]
            score = reward.bounded_scores(group, [about] * len(group))[0]
            total += 0.0 if score is None else reward.weight * score
        return total / self.scale

    def judge(self, attempt: Attempt) -> Judged:
        answer = attempt.answer(self.scene)
        return Judged(attempt, answer, self.total(answer), f1(answer, self.scene))


def climbs(rng: random.Random, judge: Judge, answers: int) -> list[Judged]:
    """Return the answers of climbs towards high reward and low F1, or the reverse, mostly with equal confidences."""
    found = [judge.judge(truth(judge.scene)), judge.judge(Attempt(words="?!", form="plain"))]
    while len(found) < answers:
        uniform, sign = rng.random() < 0.7, rng.choice([-1, 1])
        best = judge.judge(mutated(rng, judge.scene, start(rng, judge.scene), uniform))
        found.append(best)
        for _ in range(STEPS):
            new = judge.judge(mutated(rng, judge.scene, best.attempt, uniform))
            found.append(new)
            if sign * (new.reward - new.f1) >= sign * (best.reward - best.f1):
                best = new
    return found


def above_truth(found: Sequence[Judged]) -> float:
    """Return how much more than the truth the best answer earns."""
    return max(judged.reward for judged in found) - 1


def wrong_order(found: Sequence[Judged]) -> float:
    """Return the largest difference of rewards of two answers whose F1 is in the opposite order by `MIN_GAP` or more.

    Compare only answers with equal confidences of all boxes, and of the same format.
    """
    worst = 0.0
    for well_formed in (True, False):
        group = sorted(
            (judged for judged in found if judged.attempt.uniform and judged.answer.well_formed == well_formed),
            key=lambda judged: judged.f1,
        )
        behind, highest = 0, -math.inf
        for judged in group:
            while group[behind].f1 <= judged.f1 - MIN_GAP + 1e-9:
                highest = max(highest, group[behind].reward)
                behind += 1
            worst = max(worst, highest - judged.reward)
    return worst


def surplus(rng: random.Random, judge: Judge, judged: Judged) -> float:
    """Return the gain from a surplus box, i.e. one beyond the number of objects that finds no further object."""
    scene, attempt = judge.scene, judged.attempt
    room = len(scene.boxes) <= len(attempt.items) < MAX_BOXES
    if not room or judged.answer.value is None or scene.kind == "grounding":
        return NOTHING
    places = [near(rng, scene), random_box(rng), *[jittered(rng, item.box) for item in attempt.items[:1]]]
    places += [rng.choice(scene.boxes)[0]] * 3 if scene.boxes else []
    box = Item(rng.choice(places), rng.choice([0, 100, rng.randint(0, 100)]), label_of(rng, scene))
    items = list(attempt.items)
    items.insert(rng.randint(0, len(items)), box)
    more = judge.judge(replace(attempt, items=tuple(items)))
    if more.answer.value is None or hits(more.answer, scene) > hits(judged.answer, scene):
        return NOTHING
    return more.reward - judged.reward


def leaving_out(rng: random.Random, judge: Judge, judged: Judged) -> float:
    """Return the gain from leaving out a box that is needed to find an object."""
    attempt, right = judged.attempt, hits(judged.answer, judge.scene)
    if not right or judge.scene.kind == "grounding":
        return NOTHING
    i = rng.randrange(len(attempt.items))
    less = judge.judge(replace(attempt, items=attempt.items[:i] + attempt.items[i + 1 :]))
    return less.reward - judged.reward if hits(less.answer, judge.scene) < right else NOTHING


def climb(rng: random.Random, judge: Judge, fault: Callable[[random.Random, Judge, Judged], float]) -> float:
    """Return the largest fault in a climb from a separate start."""
    best = judge.judge(mutated(rng, judge.scene, start(rng, judge.scene), uniform=False))
    size = fault(rng, judge, best)
    for _ in range(STEPS):
        new = judge.judge(mutated(rng, judge.scene, best.attempt, uniform=False))
        if (of_new := max(fault(rng, judge, new) for _ in range(2))) >= size:
            best, size = new, of_new
    return size


def lying(rng: random.Random, judge: Judge, judged: Judged) -> float:
    """Return the gain from stating a confidence other than the probability that a box is right.

    The box is right in a scene that has it as an object, and wrong in a scene that has an object elsewhere instead.
    """
    scene, attempt = judge.scene, judged.attempt
    if not attempt.items or judged.answer.value is None or scene.kind == "grounding":
        return NOTHING
    i = rng.randrange(len(attempt.items))
    item, others = attempt.items[i], attempt.items[:i] + attempt.items[i + 1 :]
    elsewhere = random_box(rng)
    near_it = iou_matrix([item.box, elsewhere], [item.box, *(other.box for other in others)])
    objects = iou_matrix([item.box], [box for box, _ in scene.boxes])
    if max(near_it[0, 1:].max(initial=0), near_it[1].max(), objects.max(initial=0)) > 0.499:  # 0.5 may round upwards
        return NOTHING  # whether the box is right depends on other boxes
    with_it = scene.with_boxes((*scene.boxes, (item.box, item.label)))
    without = scene.with_boxes((*scene.boxes, (elsewhere, item.label)))
    if hits(judged.answer, with_it) != hits(judged.answer, without) + 1:
        return NOTHING

    def expected(confidence: int, probability: float) -> float:
        items = (*attempt.items[:i], replace(item, confidence=confidence), *attempt.items[i + 1 :])
        answers = [(replace(attempt, items=items).answer(one), one) for one in (with_it, without)]
        right, wrong = (judge.total(answer, one) for answer, one in answers)
        return probability * right + (1 - probability) * wrong

    p = rng.choice(PROBABILITIES)
    honest = expected(round(100 * p), p)
    return max(expected(c, p) for c in (0, round(50 * p), round(50 + 50 * p), 100)) - honest


@dataclass
class Faults:
    """The largest fault of each kind, relative to the reward of the truth, and the number of scored answers."""

    sizes: dict[str, float] = field(default_factory=dict)
    answers: int = 0

    def add(self, name: str, size: float) -> None:
        self.sizes[name] = max(self.sizes.get(name, 0.0), size)


def faults_of(rng: random.Random, judge: Judge, answers: int) -> Iterator[tuple[str, float]]:
    """Yield the size of each kind of fault in one scene."""
    found = climbs(rng, judge, answers)
    yield "above the truth", above_truth(found)
    yield "F1 in the wrong order", wrong_order(found)
    unreadable = judge.total(judge.scene.task.parse(UNREADABLE, judge.scene, FRAME))
    readable = [judged.reward for judged in found if judged.answer.valid]
    yield "unreadable pays", unreadable - min(readable, default=unreadable)
    for _ in range(max(1, answers // 100)):
        yield "surplus box pays", climb(rng, judge, surplus)
        yield "leaving out pays", climb(rng, judge, leaving_out)
    for judged in rng.sample(found, min(len(found), answers // 40)):
        yield "lying pays", lying(rng, judge, judged)
