"""Count how often a policy finds the right object of a pair, the other one, or neither.

    python benchmarks/picked.py runs/few_shot/data/ordinals_val.json \\
        runs/few_shot/grounding/*/test-pairs/evaluation/*/*_results.json

Prints a line for each results file of a test with questions such as "red one" and "red two". The found object is the
one with the largest IoU with a box of the answer, or neither if both have the same IoU or no overlap.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vrft.boxes import Box, iou_matrix
from vrft.data.datasets.scenes import ORDINALS

FOUND = ("right", "wrong", "neither")


def picked(instances: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return an entry of `FOUND` for each question about an object of a pair, in the order of the annotations."""
    ids = {category["name"]: category["id"] for category in instances["categories"]}
    true = {(entry["image_id"], entry["category_id"]): corners(entry["bbox"]) for entry in instances["annotations"]}
    found = defaultdict(list)
    for entry in results:
        found[entry["image_id"], entry["category_id"]].append(corners(entry["bbox"]))
    which = []
    for name, number in ids.items():
        colour, _, word = name.partition(" ")
        if word not in ORDINALS:
            continue
        other = ids[f"{colour} {ORDINALS[1 - ORDINALS.index(word)]}"]
        for image in [image for image, category in true if category == number]:
            pair = [true[image, number], true[image, other]]
            right, wrong = iou_matrix(found[image, number], pair).max(0, initial=0.0)
            which.append("right" if right > wrong else "wrong" if wrong > right else "neither")
    return which


def corners(box: Sequence[float]) -> Box:
    x, y, width, height = box
    return x, y, x + width, y + height


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("annotations", type=Path, help="COCO annotation file")
    parser.add_argument("results", type=Path, nargs="+", help="COCO results files")
    chosen = parser.parse_args(args)
    instances = json.loads(chosen.annotations.read_text())
    for path in chosen.results:
        which = picked(instances, json.loads(path.read_text()))
        counts = Counter(which)
        shares = ", ".join(f"{name} {counts[name] / len(which):.3f}" for name in FOUND)
        print(f"{shares} of {len(which)}  {path}")


if __name__ == "__main__":
    main()
