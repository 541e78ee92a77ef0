"""Compute average precision and recall of boxes as defined by COCO and LVIS, from tables of true and detected boxes.

The default backend is hotcoco, which agrees with pycocotools and lvis-api up to rounding and takes a hundredth of
their time. pycocotools can be chosen instead for COCO.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vrft.errors import ConfigurationError

Format = Literal["coco", "lvis"]
Backend = Literal["hotcoco", "pycocotools"]
Convention = Literal["standard", "visual_rft"]
Array = NDArray[np.float64]

COCO_NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
LVIS_NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf", "AR", "ARs", "ARm", "ARl")
UNDEFINED = -1.0
"""The benchmarks' value of a number over no true boxes."""

IGNORED_AREA = 1e12
"""An area above all ranges, with which hotcoco ignores a box."""

COLUMNS = 7
"""Columns of a table of results: image, x, y, width, height, score, category. Images and categories count from 0."""


@dataclass(frozen=True)
class Curves:
    """Precision and recall of an evaluation, -1 for categories without true boxes.

    T = 10 IoU thresholds, R = 101 recall levels, K categories, A = 4 ranges of area, M limits on detections per image.

    Attributes:
        precision: precision, (T, R, K, A).
        recall: recall, (T, K, A, M).
        names: category names in the order of their ids, (K,).
        frequencies: category frequencies, (K,): r, c or f in LVIS, else empty.
    """

    precision: Array
    recall: Array
    names: Sequence[str]
    frequencies: Sequence[str]

    def select(self, names: Iterable[str]) -> Curves:
        """Return the curves of some categories."""
        wanted = {*names}
        chosen = [k for k, name in enumerate(self.names) if name in wanted]
        return Curves(
            self.precision[:, :, chosen],
            self.recall[:, chosen],
            [self.names[k] for k in chosen],
            [self.frequencies[k] for k in chosen],
        )

    def per_category(self, convention: Convention = "standard") -> dict[str, float]:
        """Return the average precision of each category with true boxes."""
        areas = slice(None) if convention == "visual_rft" else slice(1)
        values = {name: _mean(self.precision[:, :, k, areas]) for k, name in enumerate(self.names)}
        return {name: value for name, value in values.items() if value != UNDEFINED}

    def undefined(self) -> list[str]:
        """Return the names of the categories without true boxes."""
        return sorted({*self.names}.difference(self.per_category()))

    def coco(self) -> dict[str, float]:
        """Return COCO's 12 numbers, in 0..1, -1 where undefined."""
        p, r = self.precision, self.recall
        values = [p[..., 0], p[0, ..., 0], p[5, ..., 0], p[..., 1], p[..., 2], p[..., 3]]
        values += [r[..., 0, 0], r[..., 0, 1], r[..., 0, 2], r[..., 1, 2], r[..., 2, 2], r[..., 3, 2]]
        return dict(zip(COCO_NUMBERS, map(_mean, values), strict=True))

    def lvis(self) -> dict[str, float]:
        """Return LVIS's 13 numbers, in 0..1, -1 where undefined."""
        p, r = self.precision, self.recall
        kinds = {kind: [k for k, value in enumerate(self.frequencies) if value == kind] for kind in "rcf"}
        values = [p[..., 0], p[0, ..., 0], p[5, ..., 0], p[..., 1], p[..., 2], p[..., 3]]
        values += [p[:, :, kinds[kind], 0] for kind in "rcf"]
        values += [r[..., area, 0] for area in range(4)]
        return dict(zip(LVIS_NUMBERS, map(_mean, values), strict=True))

    def numbers(self, format: Format, convention: Convention = "standard") -> dict[str, float]:
        """Return the benchmark's numbers; with `visual_rft`, LVIS's AP is averaged over all ranges of area."""
        found = self.coco() if format == "coco" else self.lvis()
        if convention == "visual_rft" and format == "lvis":
            each = self.per_category(convention)
            found["AP"] = sum(each.values()) / len(each) if each else UNDEFINED
        return found


def _mean(values: Array) -> float:
    defined = values[values > UNDEFINED]
    return float(defined.mean()) if defined.size else UNDEFINED


def as_lvis_reads(content: dict[str, Any]) -> dict[str, Any]:
    """Apply LVIS's rules: drop crowd flags, and give annotations marked `ignore` an area above all ranges."""
    rows = [
        row | {"iscrowd": 0, "area": IGNORED_AREA if row.get("ignore") else row["area"]}
        for row in content["annotations"]
    ]
    return content | {"annotations": rows}


def hotcoco_evaluation(content: dict[str, Any], results: Array, format: Format) -> Any:
    """Return hotcoco's evaluation object for results, (N, 7), on which `evaluate` was not called yet."""
    import hotcoco

    truth = hotcoco.COCO(as_lvis_reads(content) if format == "lvis" else content)
    return hotcoco.COCOeval(truth, truth.load_res(results), "bbox", lvis_style=format == "lvis")


def _with_hotcoco(content: dict[str, Any], results: Array, format: Format) -> tuple[Array, Array]:
    evaluation = hotcoco_evaluation(content, results, format)
    evaluation.evaluate()
    evaluation.accumulate()
    assert evaluation.eval is not None
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
    return np.asarray(precision, np.float64)[..., -1], np.asarray(recall, np.float64)


def _with_pycocotools(content: dict[str, Any], results: Array, format: Format) -> tuple[Array, Array]:
    if format == "lvis":
        raise ConfigurationError("backend: pycocotools implements COCO's rules only; expected hotcoco for LVIS")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = content | {"annotations": [{**row} for row in content["annotations"]]}  # COCOeval modifies them
        truth.createIndex()
        found = truth.loadRes(results) if len(results) else COCO()
        found.imgs, found.cats = truth.imgs, truth.cats
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
    return precision[..., -1], recall


BACKENDS: dict[Backend, Callable[[dict[str, Any], Array, Format], tuple[Array, Array]]] = {
    "hotcoco": _with_hotcoco,
    "pycocotools": _with_pycocotools,
}
