"""Draw boxes and paths on images, and arrange pictures with captions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from PIL import Image, ImageDraw, ImageFont

from vrft.types import Detection, Sample

Colour = tuple[int, int, int]

TRUTH: Colour = (0, 158, 115)
PREDICTION: Colour = (213, 94, 0)
"""Colours that are distinguishable with red-green colour blindness."""

COLOURS: tuple[Colour, ...] = (
    PREDICTION,
    (0, 114, 178),
    (204, 121, 167),
    (0, 158, 115),
    (230, 159, 0),
    (86, 180, 233),
)
MIN_SIDE = 320
"""Minimum longer side in pixels, to which smaller images are enlarged so that labels are legible."""

LINE_HEIGHT, MAX_LINE_CHARACTERS, GAP = 14, 60, 6


def draw_boxes(image: Image.Image, layers: Iterable[tuple[Sequence[Detection], Colour]]) -> Image.Image:
    """Return a copy of an image with boxes and their labels, each layer in its colour."""
    scale = max(1.0, MIN_SIDE / max(image.size))
    picture = image.convert("RGB").resize((round(image.width * scale), round(image.height * scale)))
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(LINE_HEIGHT - 2)
    width = max(2, max(picture.size) // 300)
    for detections, colour in layers:
        for detection in detections:
            x0, y0, x1, y1 = (v * scale for v in detection.box)
            pen.rectangle((x0, y0, x1, y1), outline=colour, width=width)
            text = label_of(detection)
            if text:
                corner = (x0, max(0.0, y0 - LINE_HEIGHT))
                pen.rectangle(pen.textbbox(corner, text, font=font), fill=colour)
                pen.text(corner, text, fill="white", font=font)
    return picture


def draw_images(sample: Sample, layers: Iterable[tuple[Sequence[Detection], Colour]]) -> Image.Image:
    """Return a picture of a sample's images in order, with boxes on the image that they belong to."""
    pictures = [draw_boxes(image, layers if i == sample.place else ()) for i, image in enumerate(sample.images)]
    return pictures[0] if len(pictures) == 1 else side_by_side(pictures)


def draw_path(image: Image.Image, points: Sequence[tuple[float, float]], colour: Colour) -> Image.Image:
    """Return a copy of an image with a line through points and a disc at its end."""
    picture = image.convert("RGB")
    pen, width = ImageDraw.Draw(picture), max(2, max(picture.size) // 60)
    pen.line(points, fill=colour, width=width, joint="curve")
    (x, y), radius = points[-1], 1.5 * width
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    return picture


def label_of(detection: Detection) -> str:
    """Return the text to draw for a box: its label and score."""
    score = "" if detection.score is None else f"{detection.score:.2f}"
    return f"{one_line(detection.label)} {score}".strip()


def one_line(text: str) -> str:
    """Shorten a text to fit in one line of a picture."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_LINE_CHARACTERS else f"{line[: MAX_LINE_CHARACTERS - 1]}…"


def with_caption(picture: Image.Image, lines: Sequence[str]) -> Image.Image:
    """Return a picture with lines of text below."""
    captioned = Image.new("RGB", (picture.width, picture.height + LINE_HEIGHT * len(lines) + 4), "white")
    captioned.paste(picture)
    pen, font = ImageDraw.Draw(captioned), ImageFont.load_default(LINE_HEIGHT - 2)
    for i, line in enumerate(lines):
        pen.text((4, picture.height + LINE_HEIGHT * i), one_line(line), fill="black", font=font)
    return captioned


def side_by_side(pictures: Sequence[Image.Image], columns: int = 4) -> Image.Image:
    """Arrange pictures in a grid on a white background."""
    width = max(picture.width for picture in pictures) + GAP
    height = max(picture.height for picture in pictures) + GAP
    columns = min(columns, len(pictures))
    sheet = Image.new("RGB", (width * columns, height * -(-len(pictures) // columns)), "white")
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (width * (i % columns), height * (i // columns)))
    return sheet
