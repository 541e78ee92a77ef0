"""Draw precision-recall curves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vrft.evaluators.average_precision import UNDEFINED, Curves

PLOT_SIDE, MARGIN = 420, 40
THRESHOLD_COLOURS = {0: (30, 90, 200), 5: (220, 120, 20), 9: (120, 120, 120)}
"""Colours of the curves by the index of their IoU threshold: .50, .75 and .95."""


def draw_curves(curves: Curves, path: Path) -> None:
    """Draw precision over recall, averaged over the categories with true boxes."""
    picture = Image.new("RGB", (PLOT_SIDE + 2 * MARGIN, PLOT_SIDE + 2 * MARGIN), "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(12)
    for i in range(11):
        at = MARGIN + PLOT_SIDE * i / 10
        pen.line([(at, MARGIN), (at, MARGIN + PLOT_SIDE)], fill=(230, 230, 230))
        pen.line([(MARGIN, at), (MARGIN + PLOT_SIDE, at)], fill=(230, 230, 230))
        pen.text((at - 8, MARGIN + PLOT_SIDE + 4), f"{i / 10:.1f}", fill="black", font=font)
        pen.text((12, MARGIN + PLOT_SIDE - PLOT_SIDE * i / 10 - 7), f"{i / 10:.1f}", fill="black", font=font)
    pen.text((MARGIN + PLOT_SIDE / 2 - 20, MARGIN + PLOT_SIDE + 20), "recall", fill="black", font=font)
    pen.text((MARGIN, MARGIN - 20), "precision", fill="black", font=font)
    for line, (threshold, colour) in enumerate(THRESHOLD_COLOURS.items()):
        precision = np.asarray(curves.precision)[threshold, :, :, 0]  # (R, K)
        precision = precision[:, (precision > UNDEFINED).any(0)]
        if precision.size:
            mean = precision.mean(1)
            points = [(MARGIN + PLOT_SIDE * i / 100, MARGIN + PLOT_SIDE * (1 - value)) for i, value in enumerate(mean)]
            pen.line(points, fill=colour, width=2)
            label = f"IoU {0.5 + 0.05 * threshold:.2f}: AP {mean.mean():.3f}"
            pen.text((MARGIN + PLOT_SIDE - 130, MARGIN + 8 + 16 * line), label, fill=colour, font=font)
    picture.save(path)
