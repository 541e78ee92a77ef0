"""Boxes in the paper's answer format, and their frame."""

from __future__ import annotations

from vrft.types import Frame

FRAME = Frame(1000, 800)


def box(position: str = "[10, 20, 300, 400]", confidence: str = "0.9") -> str:
    return f"{{'Position': {position}, 'Confidence': {confidence}}}"


QWEN = '{"bbox_2d": [10, 20, 300, 400], "label": "cat"}'
