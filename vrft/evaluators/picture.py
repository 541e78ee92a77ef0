"""Precision over recall, as a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vrft.evaluators.average_precision import UNDEFINED, Curves

SIDE, MARGIN = 420, 40
SHOWN = {0: (30, 90, 200), 5: (220, 120, 20), 9: (120, 120, 120)}
"""IoU thresholds that are drawn, by number: .50, .75 and .95."""


def draw_curves(curves: Curves, path: Path) -> None:
    """Draw precision over recall, the mean over categories that have a true box."""
    picture = Image.new("RGB", (SIDE + 2 * MARGIN, SIDE + 2 * MARGIN), "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(12)
    for i in range(11):
        at = MARGIN + SIDE * i / 10
        pen.line([(at, MARGIN), (at, MARGIN + SIDE)], fill=(230, 230, 230))
        pen.line([(MARGIN, at), (MARGIN + SIDE, at)], fill=(230, 230, 230))
        pen.text((at - 8, MARGIN + SIDE + 4), f"{i / 10:.1f}", fill="black", font=font)
        pen.text((12, MARGIN + SIDE - SIDE * i / 10 - 7), f"{i / 10:.1f}", fill="black", font=font)
    pen.text((MARGIN + SIDE / 2 - 20, MARGIN + SIDE + 20), "recall", fill="black", font=font)
    pen.text((MARGIN, MARGIN - 20), "precision", fill="black", font=font)
    for line, (threshold, colour) in enumerate(SHOWN.items()):
        precision = np.asarray(curves.precision)[threshold, :, :, 0]  # (R, K)
        precision = precision[:, (precision > UNDEFINED).any(0)]
        if precision.size:
            mean = precision.mean(1)
            points = [(MARGIN + SIDE * i / 100, MARGIN + SIDE * (1 - value)) for i, value in enumerate(mean)]
            pen.line(points, fill=colour, width=2)
            label = f"IoU {0.5 + 0.05 * threshold:.2f}: AP {mean.mean():.3f}"
            pen.text((MARGIN + SIDE - 130, MARGIN + 8 + 16 * line), label, fill=colour, font=font)
    picture.save(path)
