"""Samples as the model gets them: prompt, exact target text, and true boxes through the coordinates of the model."""

from __future__ import annotations

import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from vrft.tasks import Task
from vrft.types import Frame, PromptBatch, Sample

TILES, COLUMNS = 12, 4
WIDTH, PICTURE, LINE = 360, 300, 13
LINES = 16
COLOUR = (220, 30, 30)


def draw_sheet(task: Task, batch: PromptBatch, path: Path) -> None:
    """Write a picture of some samples."""
    tiles = [draw_tile(task, *pair) for pair in list(zip(batch.samples, batch.frames, strict=True))[:TILES]]
    height = tiles[0].height
    rows = -(-len(tiles) // COLUMNS)
    sheet = Image.new("RGB", (WIDTH * min(COLUMNS, len(tiles)), height * rows), "white")
    for i, tile in enumerate(tiles):
        sheet.paste(tile, (WIDTH * (i % COLUMNS), height * (i // COLUMNS)))
    sheet.save(path)


def draw_tile(task: Task, sample: Sample, frame: Frame) -> Image.Image:
    """A sample's image with the boxes that its target text says, above the prompt and that text."""
    tile = Image.new("RGB", (WIDTH, PICTURE + LINES * LINE + 10), "white")
    pen, font = ImageDraw.Draw(tile), ImageFont.load_default(11)
    width, height = sample.size
    scale = min((WIDTH - 10) / width, (PICTURE - 10) / height)
    shown = sample.image.resize((max(1, round(width * scale)), max(1, round(height * scale))))
    tile.paste(shown, (5, 5))
    target = task.target_text(sample, frame)
    value = task.parse(target, sample, frame).value
    for detection in value if isinstance(value, tuple) else ():
        corners = [5 + v * scale for v in detection.box]
        pen.rectangle(corners, outline=COLOUR, width=2)
        pen.text((corners[0] + 3, corners[1] + 1), detection.label[:30], fill=COLOUR, font=font)
    question = textwrap.wrap(f"{sample.index}: {task.question(sample, frame)}", 62)[: LINES // 2]
    answer = textwrap.wrap(target, 62)[: LINES // 2]
    for i, line in enumerate([*question, *answer]):
        colour = "black" if i < len(question) else COLOUR
        pen.text((5, PICTURE + i * LINE), line, fill=colour, font=font)
    return tile
