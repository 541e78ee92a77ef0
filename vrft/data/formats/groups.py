"""Join the parts of objects that annotation tools outline in several parts."""

from __future__ import annotations

from collections.abc import Sequence

from vrft.data.box_data import Corners
from vrft.data.files import brief


def join_groups(
    boxes: Sequence[tuple[str, Corners]], groups: Sequence[object]
) -> tuple[list[tuple[str, Corners]], int]:
    """Join boxes with the same label and group, which are parts of one object, e.g. on both sides of a pole.

    Args:
        boxes: labels with corners.
        groups: group of each box, an integer or a string; None for an object of a single box.

    Returns:
        The boxes of the objects, and the number of boxes that were joined to others.

    Raises:
        ValueError: a group is not an integer, a string or None.

    >>> join_groups([("car", (0, 0, 4, 4)), ("car", (6, 0, 9, 5)), ("dog", (1, 1, 2, 2))], [1, 1, 1])
    ([('car', (0, 0, 9, 5)), ('dog', (1, 1, 2, 2))], 1)
    """
    objects: dict[object, tuple[str, Corners]] = {}
    for i, ((label, box), group) in enumerate(zip(boxes, groups, strict=True)):
        if isinstance(group, bool) or not isinstance(group, int | str | None):
            raise ValueError(f"group: expected an integer, a string or null, got {brief(group)}")
        key = ("alone", i) if group is None else (group, label)
        x0, y0, x1, y1 = objects.get(key, (label, box))[1]
        objects[key] = label, (min(x0, box[0]), min(y0, box[1]), max(x1, box[2]), max(y1, box[3]))
    return [*objects.values()], len(boxes) - len(objects)
