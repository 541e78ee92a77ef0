"""Generated scenes: coloured shapes on grey, for runs that download nothing."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from torch.utils.data import Dataset

from vrft.data.datamodule import VisionData
from vrft.data.formats.coco import CocoData
from vrft.data.record import Split
from vrft.errors import ConfigurationError
from vrft.types import Detection, Sample
from vrft.utils.bounds import Seed

SIZE = 56  # pixels
CELLS = 20  # box corners lie on a 20 x 20 grid, so coordinates in thousandths are multiples of 50
OVERSAMPLING = 3
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 80, 230),
    "yellow": (235, 215, 50),
    "purple": (150, 50, 190),
    "orange": (245, 140, 30),
    "cyan": (40, 200, 215),
    "pink": (250, 130, 190),
}
NOVEL_COLOURS = {
    "brown": (120, 72, 30),
    "black": (25, 25, 25),
    "lime": (165, 225, 30),
    "navy": (25, 30, 110),
}
"""Colours in the vocabulary of the built-in policy that it was never trained on."""
PALETTE = COLOURS | NOVEL_COLOURS
ORDINALS = ("one", "two")
SHAPES = ("circle", "square", "triangle", "plus", "ring")

Cell = tuple[int, int, int, int]


def draw_scene(
    rng: random.Random,
    objects: tuple[int, int] = (1, 3),
    colours: Sequence[str] = tuple(COLOURS),
    background: tuple[int, int] = (118, 138),
    ordinals: Sequence[str] = (),
) -> tuple[Image.Image, list[Detection]]:
    """Draw shapes that do not overlap, and return the image and their boxes, labelled with the colours.

    Args:
        rng: source of all randomness.
        objects: minimum and maximum number of shapes.
        colours: colours of the shapes.
        background: darkest and lightest grey; the default is near the processor's mean.
        ordinals: colours to draw as a pair, one pair per image, labelled from left to right: "red one", "red two".
    """
    count = rng.randint(*objects)
    if ordinals:
        first = rng.choice(ordinals)
        others = [colour for colour in colours if colour != first]
        chosen = [first, first, *rng.sample(others, max(count, 2) - 2)]
    else:
        twins = count > 1 and rng.random() < 0.25  # two objects of the first colour
        chosen = rng.sample(list(colours), count - twins)
        chosen = chosen[:1] * twins + chosen
    grey = (rng.randint(*background),) * 3
    side = SIZE * OVERSAMPLING
    picture = Image.new("RGB", (side, side), grey)
    pen = ImageDraw.Draw(picture)
    cells = _place(rng, len(chosen))
    for cell, colour in zip(cells, chosen, strict=False):
        fill = tuple(min(255, max(0, value + rng.randint(-15, 15))) for value in PALETTE[colour])
        _draw_shape(pen, rng.choice(SHAPES), [value * side / CELLS for value in cell], fill, grey)
    unit = SIZE / CELLS
    detections = [
        Detection((cell[0] * unit, cell[1] * unit, cell[2] * unit, cell[3] * unit), colour)
        for cell, colour in zip(cells, chosen, strict=False)
    ]
    if ordinals and len(detections) > 1:
        pair = sorted(detections[:2], key=lambda found: found.box[0] + found.box[2])
        detections[:2] = [
            found._replace(label=f"{found.label} {word}") for found, word in zip(pair, ORDINALS, strict=True)
        ]
    return picture.resize((SIZE, SIZE), Image.Resampling.BOX), detections


def _place(rng: random.Random, count: int) -> list[Cell]:
    """Place up to `count` boxes of cells that do not touch. A box that does not fit after 40 tries is left out."""
    taken: list[Cell] = []
    for _ in range(count):
        for _ in range(40):
            w = rng.randint(4, 9)
            h = min(max(round(w * rng.uniform(0.75, 1.33)), 4), 10)
            x, y = rng.randint(1, CELLS - w - 1), rng.randint(1, CELLS - h - 1)
            cell = (x, y, x + w, y + h)
            if all(cell[2] < c[0] or c[2] < cell[0] or cell[3] < c[1] or c[3] < cell[1] for c in taken):
                taken.append(cell)
                break
    return taken


def _draw_shape(
    pen: ImageDraw.ImageDraw, shape: str, box: list[float], fill: tuple[int, ...], background: tuple[int, ...]
) -> None:
    x0, y0, x1, y1 = box
    w, h = x1 - x0, y1 - y0
    if shape == "square":
        pen.rectangle(box, fill)
    elif shape == "triangle":
        pen.polygon([(x0 + w / 2, y0), (x1, y1), (x0, y1)], fill)
    elif shape == "plus":
        pen.rectangle([x0 + w / 3, y0, x1 - w / 3, y1], fill)
        pen.rectangle([x0, y0 + h / 3, x1, y1 - h / 3], fill)
    else:
        pen.ellipse(box, fill)
    if shape == "ring":
        pen.ellipse([x0 + 0.27 * w, y0 + 0.27 * h, x1 - 0.27 * w, y1 - 0.27 * h], background)


def known_colours(option: str, colours: Sequence[str]) -> tuple[str, ...]:
    """Return the colours. Raise ConfigurationError if one is not in the palette."""
    if unknown := sorted({*colours} - {*PALETTE}):
        raise ConfigurationError(f"data.{option}: expected colours among {', '.join(PALETTE)}, got {unknown[0]!r}")
    return tuple(colours)


class SceneData(CocoData):
    """Writes scenes as images and COCO instances files if these do not exist, then reads them as COCO data."""

    def __init__(
        self,
        train_annotations: str = "data/scenes/instances_train.json",
        train_images: str = "data/scenes/train",
        val_annotations: str = "data/scenes/instances_val.json",
        val_images: str = "data/scenes/val",
        eval_batch_size: int = 64,
        train_size: int = 200,
        val_size: int = 150,
        objects: tuple[int, int] = (1, 3),
        colours: list[str] | None = None,
        background: tuple[int, int] = (118, 138),
        ordinals: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Set the files and the content of the scenes.

        Args:
            train_annotations: instances file of the training scenes.
            train_images: folder of the training images.
            val_annotations: instances file of the held-out scenes.
            val_images: folder of the held-out images.
            eval_batch_size: prompts decoded together in evaluation.
            train_size: number of training scenes.
            val_size: number of held-out scenes.
            objects: minimum and maximum number of shapes in a scene.
            colours: colours of the shapes, out of `PALETTE`; default: those that the built-in policy was trained on.
            background: darkest and lightest grey.
            ordinals: colours to draw as a pair, one pair per scene, labelled from left to right: "red one", "red two".
            kwargs: see `CocoData`.
        """
        self.sizes: dict[Split, int] = {"train": train_size, "val": val_size}
        self.objects = objects
        self.colours = known_colours("colours", colours or tuple(COLOURS))
        self.ordinals = known_colours("ordinals", ordinals or ())
        self.background = background
        super().__init__(
            train_annotations, train_images, val_annotations, val_images, eval_batch_size=eval_batch_size, **kwargs
        )

    def check_paths(self) -> None:
        """Skip the check of the base class, because missing files are generated."""

    def prepare_data(self) -> None:
        for split, (file, folder) in self.files.items():
            if not file.exists():
                scenes = [
                    draw_scene(
                        random.Random(f"{split}/{i}"), self.objects, self.colours, self.background, self.ordinals
                    )
                    for i in range(self.sizes[split])
                ]
                write_coco(scenes, file, folder, self.names())

    def file_categories(self) -> Sequence[str]:
        return self.names()

    def names(self) -> list[str]:
        """Return the category names in the order of their ids."""
        return [*self.colours, *(f"{colour} {word}" for colour in self.ordinals for word in ORDINALS)]


def write_coco(
    scenes: Sequence[tuple[Image.Image, list[Detection]]],
    annotations: Path,
    images: Path,
    names: Sequence[str] = tuple(COLOURS),
) -> None:
    """Write images as PNG, then their boxes as a COCO instances file, atomically."""
    images.mkdir(parents=True, exist_ok=True)
    annotations.parent.mkdir(parents=True, exist_ok=True)
    ids = {name: i for i, name in enumerate(names, 1)}
    image_records: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    for image_id, (picture, detections) in enumerate(scenes, 1):
        name = f"{image_id:06d}.png"
        picture.save(images / name)
        image_records.append({"id": image_id, "file_name": name, "width": picture.width, "height": picture.height})
        for detection in detections:
            x0, y0, x1, y1 = detection.box
            boxes.append(
                {
                    "id": len(boxes) + 1,
                    "image_id": image_id,
                    "category_id": ids[detection.label],
                    "bbox": [round(v, 2) for v in (x0, y0, x1 - x0, y1 - y0)],
                    "area": round((x1 - x0) * (y1 - y0), 2),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": i, "name": name} for name, i in ids.items()]
    content = {"images": image_records, "annotations": boxes, "categories": categories}
    partial = annotations.with_suffix(".partial")
    partial.write_text(json.dumps(content) + "\n", encoding="utf-8")
    partial.replace(annotations)


class FreshScenes(Dataset[Sample]):
    """`size` scenes drawn on access; the first `num_simple` have one object.

    With `ordinals`, three of four scenes have a pair of one of these colours, see `draw_scene`.
    """

    def __init__(self, size: int, num_simple: int, seed: int, ordinals: Sequence[str] = ()) -> None:
        self.size, self.num_simple, self.seed, self.ordinals = size, num_simple, seed, ordinals

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        rng = random.Random(f"fresh/{self.seed}/{index}")
        objects = (1, 1) if index < self.num_simple else (1, 3)
        image, detections = draw_scene(rng, objects, ordinals=self.ordinals if index % 4 else ())
        query = rng.choice(detections).label
        return Sample(index, (image,), index, query, tuple(d for d in detections if d.label == query))


class FreshSceneData(VisionData):
    """A stream of new scenes in a fixed order, to pretrain the built-in policy."""

    shuffle = False

    def __init__(
        self,
        steps: int,
        simple_steps: int = 0,
        batch_size: int = 64,
        eval_batch_size: int = 128,
        seed: Seed = 0,
        ordinals: list[str] | None = None,
    ) -> None:
        """Set the number and the content of the scenes.

        Args:
            steps: number of training batches.
            simple_steps: number of initial batches with one object per scene, which shortens the plateau.
            batch_size: scenes per batch.
            eval_batch_size: prompts decoded together in evaluation.
            seed: seed of the scenes.
            ordinals: colours that appear in pairs, "red one" and "red two", in three of four scenes.
        """
        super().__init__(batch_size, eval_batch_size, num_workers=0, seed=seed)
        self.steps, self.simple_steps, self.ordinals = steps, simple_steps, known_colours("ordinals", ordinals or ())

    def train_set(self) -> FreshScenes:
        return FreshScenes(self.steps * self.batch_size, self.simple_steps * self.batch_size, self.seed, self.ordinals)

    def val_set(self) -> FreshScenes:
        return FreshScenes(256, 0, self.seed + 1_000_000, self.ordinals)
