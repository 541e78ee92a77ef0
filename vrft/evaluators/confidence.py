"""Confidence of boxes: stated in the answer, or the probability of the box's tokens."""

from __future__ import annotations

import math
import re
from itertools import accumulate
from typing import Literal

from vrft.types import Answer, Detection

Confidence = Literal["answer", "logprob", "product"]

BOX_TEXT = re.compile(r"\{[^{}]*\}|\([^()]*\)\s*,\s*\([^()]*\)")
"""A box in the text of an answer: an object, or two corners."""


def with_confidence(answer: Answer, confidence: Confidence) -> tuple[Detection, ...]:
    """Return the boxes of an answer with scores, None where no confidence is stated or tokens can't be assigned."""
    boxes = answer.value if isinstance(answer.value, tuple) else ()
    if confidence == "answer" or not boxes:
        return boxes
    found = token_probabilities(answer)
    if len(found) != len(boxes):
        return tuple(box._replace(score=None) for box in boxes)
    if confidence == "logprob":
        return tuple(box._replace(score=value) for box, value in zip(boxes, found, strict=True))
    return tuple(
        box._replace(score=None if box.score is None else box.score * value)
        for box, value in zip(boxes, found, strict=True)
    )


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
        found.append(math.exp(sum(inside) / len(inside)))
    return found
