"""Draw samples as the model receives them: prompt, target text, and true boxes in the model's coordinates."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from vrft.policy.processor import shown_images
from vrft.tasks import Task
from vrft.types import Frame, PromptBatch, Sample
from vrft.utils.display import counted, visible

MAX_TILES, COLUMNS = 12, 4
TILE_WIDTH, IMAGE_HEIGHT, LINE_HEIGHT = 360, 300, 13
MAX_LINES = 16
MAX_NAME = 50
BOX_COLOUR = (220, 30, 30)


def draw_sheet(task: Task, batch: PromptBatch, path: Path, file_of: Callable[[int], str | None]) -> None:
    """Draw some samples in a grid. `file_of` returns the image file of a sample by its index."""
    pairs = list(zip(batch.samples, batch.frames, strict=True))[:MAX_TILES]
    tiles = [draw_tile(task, sample, frame, file_of(sample.index)) for sample, frame in pairs]
    height = tiles[0].height
    rows = -(-len(tiles) // COLUMNS)
    sheet = Image.new("RGB", (TILE_WIDTH * min(COLUMNS, len(tiles)), height * rows), "white")
    for i, tile in enumerate(tiles):
        sheet.paste(tile, (TILE_WIDTH * (i % COLUMNS), height * (i // COLUMNS)))
    sheet.save(path)


def draw_tile(task: Task, sample: Sample, frame: Frame, file: str | None) -> Image.Image:
    """Draw a sample's images with the boxes parsed from its target text, above the prompt and the target text.

    Images of few-shot examples come first.
    """
    tile = Image.new("RGB", (TILE_WIDTH, IMAGE_HEIGHT + MAX_LINES * LINE_HEIGHT + 10), "white")
    pen, font = ImageDraw.Draw(tile), ImageFont.load_default(11)
    images = shown_images(sample)
    width, height = sum(image.width for image in images), max(image.height for image in images)
    scale = min((TILE_WIDTH - 10) / width, (IMAGE_HEIGHT - 10) / height)
    x, left_edge = 5.0, 5.0  # left edges of the next image and of the image that the boxes belong to
    for image in images:
        left_edge = x if image is sample.image else left_edge
        tile.paste(image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale)))), (int(x), 5))
        x += image.width * scale
    target = task.target_text(sample, frame)
    value = task.parse(target, sample, frame).value
    for detection in value if isinstance(value, tuple) else ():
        corners = [(left_edge, 5)[i % 2] + v * scale for i, v in enumerate(detection.box)]
        pen.rectangle(corners, outline=BOX_COLOUR, width=2)
        label = detection.label[:30]
        left = max(0.0, min(corners[0] + 3, TILE_WIDTH - 5 - pen.textlength(label, font=font)))
        pen.text((left, corners[1] + 1), label, fill=BOX_COLOUR, font=font)
    name = visible(Path(file).name)[:MAX_NAME] if file else "without a file"
    shown = f"after {counted(len(sample.examples), 'example')}: " if sample.examples else ""
    asked = f"{sample.index} ({name}): {shown}{task.image_note(sample)}{task.question(sample, frame)}"
    question = textwrap.wrap(asked, 62)[: MAX_LINES // 2]
    answer = textwrap.wrap(target, 62)[: MAX_LINES // 2]
    for i, line in enumerate([*question, *answer]):
        colour = "black" if i < len(question) else BOX_COLOUR
        pen.text((5, IMAGE_HEIGHT + i * LINE_HEIGHT), line, fill=colour, font=font)
    return tile
