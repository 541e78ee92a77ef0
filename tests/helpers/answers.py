"""Samples, and answers in the requested format."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from vrft.rewards import (
    DetectionConfidence,
    DetectionIoU,
    Format,
)
from vrft.tasks import DetectionTask
from vrft.types import Answer, Detection, Frame, PromptBatch, Rollout, Sample, ScoredRollout, Target

FRAME = Frame(1000, 1000)
EXACT = [10, 20, 300, 400]
GOOD, GOOD_IOU = [12, 25, 300, 390], 288 * 365 / (290 * 380)
FAR = [700, 21, 900, 990]
ONE: Target = (Detection((5, 10, 150, 200), "cat"),)
TWO: Target = (*ONE, Detection((300, 300, 400, 400), "cat"))
NONE: Target = ()


def sample(target: Target) -> Sample:
    """Return a sample of 500 x 500 pixels; its coordinates in a frame of 1000 x 1000 are twice those in pixels."""
    return Sample(0, (Image.new("1", (500, 500)),), 0, "cat", target)


def boxes(*items: tuple[list[int], object]) -> str:
    return "[" + ", ".join(f"{{'Position': {position}, 'Confidence': {c}}}" for position, c in items) + "]"


def tagged(answer: str, reasoning: str = "hm") -> str:
    return f"<think>{reasoning}</think><answer>{answer}</answer>"


SURE = boxes((GOOD, 0.9))


def detection_scores(text: str, target: Target) -> tuple[float, float, float]:
    """Return the scores of IoU, confidence and format."""
    about = sample(target)
    answer = DetectionTask().parse(text, about, FRAME)
    return (
        DetectionIoU().score(answer, about),
        DetectionConfidence().score(answer, about),
        Format().score(answer, about),
    )


def position() -> st.SearchStrategy[list[int]]:
    sides = st.lists(st.integers(0, 1000), min_size=2, max_size=2, unique=True).map(sorted)
    return st.tuples(sides, sides).map(lambda xy: [xy[0][0], xy[1][0], xy[0][1], xy[1][1]])


def overlap_of(a: list[float], b: list[float]) -> tuple[float, float]:
    """Return IoU and GIoU, computed from their definitions."""
    wide = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    high = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - wide * high
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return wide * high / union, wide * high / union - (hull - union) / hull


def answers(*texts: str) -> list[Answer]:
    return [Answer(text, "", None, False) for text in texts]


def scored_rollout(
    sample: Sample, answers: list[Answer], rewards: dict[str, Tensor], reward: Tensor, advantages: Tensor
) -> ScoredRollout:
    """Return a rollout of one prompt whose completions have one token each; rewards are (G,), the others (1, G)."""
    batch = PromptBatch([sample], [Frame(*sample.size)], [{}])
    ids, values = torch.zeros(len(answers), 1, dtype=torch.long), torch.zeros(len(answers), 1)
    texts = [answer.text for answer in answers]
    rollout = Rollout(ids, torch.ones_like(ids), values, values, torch.zeros(len(answers), dtype=torch.bool), texts)
    return ScoredRollout(batch, rollout, answers, rewards, reward, advantages)
