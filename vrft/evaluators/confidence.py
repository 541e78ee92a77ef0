"""Compute the confidence of boxes: as stated in the answer, or the probability of the box's tokens."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import accumulate
from typing import Literal

from vrft.types import Answer, Detection

Confidence = Literal["answer", "logprob", "product"]

BOX_TEXT = re.compile(r"\{[^{}]*\}|\([^()]*\)\s*,\s*\([^()]*\)")
"""A box in the text of an answer: a JSON object, or two corners."""


def with_confidence(answer: Answer, confidence: Confidence) -> tuple[Detection, ...]:
    """Return the boxes of an answer with scores.

    With `answer`, the score of a box is its stated confidence. With `logprob`, it is the probability of the box's
    tokens, which `product` multiplies by the stated confidence if there is one. A score is None if the confidence is
    not stated or the tokens are not known.
    """
    boxes = answer.value if isinstance(answer.value, tuple) else ()
    if confidence == "answer" or not boxes:
        return boxes
    if not answer.tokens:
        return boxes if confidence == "product" else tuple(box._replace(score=None) for box in boxes)
    found = token_probabilities(answer)
    if len(found) != len(boxes):  # e.g. a label with braces: give all boxes the probability of the whole answer
        found = [mean_probability([log_prob for _, log_prob in answer.tokens])] * len(boxes)
    stated = [1.0 if confidence == "logprob" or box.score is None else box.score for box in boxes]
    return tuple(box._replace(score=score * value) for box, score, value in zip(boxes, stated, found, strict=True))


def mean_probability(log_probs: Sequence[float]) -> float:
    """Return the geometric mean of probabilities."""
    return math.exp(sum(log_probs) / len(log_probs))


def token_probabilities(answer: Answer) -> list[float]:
    """Return the geometric mean of the token probabilities of each box in the last answer block, in order."""
    text = "".join(piece for piece, _ in answer.tokens)
    ends = list(accumulate(len(piece) for piece, _ in answer.tokens))
    starts = [0, *ends[:-1]]
    found = []
    for item in BOX_TEXT.finditer(text, max(text.rfind("<answer>"), 0)):
        inside = [
            log_prob
            for start, end, (_, log_prob) in zip(starts, ends, answer.tokens, strict=False)
            if start < item.end() and end > item.start()
        ]
        found.append(mean_probability(inside))
    return found
