"""Category lists of Visual-RFT (arXiv 2503.01785), by name: `categories=coco_novel15`."""

from __future__ import annotations

from collections.abc import Sequence

from vrft.errors import ConfigurationError

COCO_NOVEL15 = (
    "mouse",
    "fork",
    "hot dog",
    "cat",
    "airplane",
    "suitcase",
    "parking meter",
    "sandwich",
    "train",
    "hair drier",
    "toilet",
    "toaster",
    "snowboard",
    "frisbee",
    "bear",
)
COCO_BASE65 = (
    "person",
    "bicycle",
    "car",
    "motorcycle",
    "bus",
    "truck",
    "boat",
    "traffic light",
    "fire hydrant",
    "stop sign",
    "bench",
    "bird",
    "dog",
    "horse",
    "sheep",
    "cow",
    "elephant",
    "zebra",
    "giraffe",
    "backpack",
    "umbrella",
    "handbag",
    "tie",
    "skis",
    "sports ball",
    "kite",
    "baseball bat",
    "baseball glove",
    "skateboard",
    "surfboard",
    "tennis racket",
    "bottle",
    "wine glass",
    "cup",
    "knife",
    "spoon",
    "bowl",
    "banana",
    "apple",
    "orange",
    "broccoli",
    "carrot",
    "pizza",
    "donut",
    "cake",
    "chair",
    "couch",
    "potted plant",
    "bed",
    "dining table",
    "tv",
    "laptop",
    "remote",
    "keyboard",
    "cell phone",
    "microwave",
    "oven",
    "sink",
    "refrigerator",
    "book",
    "clock",
    "vase",
    "scissors",
    "teddy bear",
    "toothbrush",
)
COCO_FEW_SHOT8 = ("bus", "train", "fire hydrant", "stop sign", "cat", "dog", "bed", "toilet")
LVIS_FEW_SHOT6 = ("horse_buggy", "die", "kitchen_table", "omelet", "papaya", "stepladder")
LVIS_NOVEL13 = (
    "casserole",
    "die",
    "egg_roll",
    "futon",
    "garbage",
    "handsaw",
    "hippopotamus",
    "kitchen_table",
    "mallet",
    "omelet",
    "shot_glass",
    "stepladder",
    "sugar_bowl",
)

NAMED = {
    "coco_novel15": COCO_NOVEL15,
    "coco_base65": COCO_BASE65,
    "coco_few_shot8": COCO_FEW_SHOT8,
    "lvis_few_shot6": LVIS_FEW_SHOT6,
    "lvis_novel13": LVIS_NOVEL13,
}

Categories = list[str] | str | None
"""Names of categories, the name of one of the lists above, or None for all categories of a file."""


def category_names(categories: Categories, field: str = "data.categories") -> Sequence[str] | None:
    """Return the names of categories. A string selects one of the lists above.

    Raises:
        ConfigurationError: the list does not exist.

    >>> category_names("coco_few_shot8")[:2]
    ('bus', 'train')
    """
    if not isinstance(categories, str):
        return categories
    if categories not in NAMED:
        raise ConfigurationError(
            f"{field}: no list is called {categories!r}; expected one of {', '.join(NAMED)}, or names in brackets"
        )
    return NAMED[categories]
