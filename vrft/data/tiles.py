"""Cut images with more objects than an answer may have into tiles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from vrft.answers import MAX_BOXES
from vrft.data.record import Record, Tile, boxes_of
from vrft.types import Detection

MIN_SIDE = 56
"""Minimum side of a tile in pixels, because models see little in smaller images."""


def tiles_of(record: Record) -> list[Record]:
    """Return records about tiles of a record's image, with at most MAX_BOXES boxes each.

    The image is halved across its longer side until no tile has more boxes. A box belongs to the tile that contains its
    centre and is clipped to the tile, so each object is in one tile. Tiles without boxes are left out. More boxes are
    possible in tiles that can't be halved any further and in records with several images, which are not cut.
    """
    if record.num_images > 1:
        return [record]
    width, height = record.size
    found = []
    for tile, boxes in _split((0, 0, width, height), boxes_of(record)):
        x0, y0, x1, y1 = tile
        found.append(
            replace(
                record,
                location=f"{record.location}: tile of {x1 - x0} x {y1 - y0} at {x0}, {y0}",
                target=tuple(_inside(box, tile) for box in boxes),
                size=(x1 - x0, y1 - y0),
                tile=Tile(tile, record.size),
            )
        )
    return found


def _split(
    area: tuple[int, int, int, int], boxes: Sequence[Detection]
) -> Iterator[tuple[tuple[int, int, int, int], Sequence[Detection]]]:
    """Yield tiles of an area, each with the boxes whose centres it contains."""
    x0, y0, x1, y1 = area
    axis = 0 if x1 - x0 >= y1 - y0 else 1
    if len(boxes) <= MAX_BOXES or area[axis + 2] - area[axis] < 2 * MIN_SIDE:
        yield from [(area, boxes)] if boxes else []
        return
    middle = (area[axis] + area[axis + 2]) // 2
    before = [box for box in boxes if box.box[axis] + box.box[axis + 2] < 2 * middle]
    after = [box for box in boxes if box.box[axis] + box.box[axis + 2] >= 2 * middle]
    first, second = (
        ((x0, y0, middle, y1), (middle, y0, x1, y1)) if axis == 0 else ((x0, y0, x1, middle), (x0, middle, x1, y1))
    )
    yield from _split(first, before)
    yield from _split(second, after)


def _inside(box: Detection, tile: tuple[int, int, int, int]) -> Detection:
    """Return a box clipped to a tile, in the tile's pixels."""
    (x0, y0, x1, y1), (left, top, right, bottom) = box.box, tile
    return box._replace(box=(max(x0, left) - left, max(y0, top) - top, min(x1, right) - left, min(y1, bottom) - top))
