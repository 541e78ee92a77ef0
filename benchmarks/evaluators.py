"""Measure the time of COCO evaluations by several tools on the same boxes, and of a gather over ranks.

    python benchmarks/evaluators.py --images 5000 --detections 100000

Prints a JSON line with seconds and AP for each tool, and one for the gather. Without torchvision, torchmetrics is
skipped.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from vrft.evaluators.average_precision import Array, Backend
from vrft.evaluators.base import gather
from vrft.evaluators.coco import Row
from vrft.evaluators.truth import Truth
from vrft.types import Detection

CATEGORIES, TRUE_PER_IMAGE = 80, 7


def make(images: int, detections: int, folder: Path) -> tuple[Path, Array]:
    """Write ground truth with some crowds, and generate detections near the true boxes with different scores."""
    rng = np.random.default_rng(0)
    count = images * TRUE_PER_IMAGE
    corner, size = rng.uniform(0, 400, (count, 2)), rng.uniform(5, 200, (count, 2))
    owner, kind = rng.integers(1, images + 1, count), rng.integers(1, CATEGORIES + 1, count)
    crowd = rng.random(count) < 0.012
    annotations = [
        {
            "id": i + 1,
            "image_id": int(owner[i]),
            "category_id": int(kind[i]),
            "bbox": [*corner[i].tolist(), *size[i].tolist()],
            "area": float(size[i].prod()),
            "iscrowd": int(crowd[i]),
        }
        for i in range(count)
    ]
    path = folder / "truth.json"
    content = {
        "images": [{"id": i, "width": 640, "height": 640} for i in range(1, images + 1)],
        "categories": [{"id": i, "name": str(i)} for i in range(1, CATEGORIES + 1)],
        "annotations": annotations,
    }
    path.write_text(json.dumps(content))
    which = rng.integers(0, count, detections)
    noise = rng.normal(0, 0.1, (detections, 4)) * np.tile(size[which], 2)
    boxes = np.concatenate([corner[which], size[which]], 1) + noise
    boxes[:, 2:] = boxes[:, 2:].clip(1)
    kinds = np.where(rng.random(detections) < 0.8, kind[which], rng.integers(1, CATEGORIES + 1, detections))
    return path, np.column_stack([owner[which], boxes, rng.random(detections), kinds])


def with_backend(backend: Backend) -> Callable[[Path, Array], float]:
    """Return a function that evaluates with one of vrft's backends."""

    def evaluate(path: Path, results: Array) -> float:
        numbered = results - np.array([1, 0, 0, 0, 0, 0, 1])  # ids start at 1, numbers at 0
        return Truth.read(path).evaluate(numbered, "coco", backend).numbers("coco")["AP"]

    return evaluate


def with_torchmetrics(path: Path, results: Array) -> float:
    """Evaluate with torchmetrics."""
    from torchmetrics.detection import MeanAveragePrecision

    content = json.loads(path.read_text())
    true: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        true[annotation["image_id"]].append(annotation)
    metric = MeanAveragePrecision(box_format="xywh", backend="pycocotools")
    for image, boxes in true.items():
        mine = results[results[:, 0] == image]
        found = {
            "boxes": torch.tensor(mine[:, 1:5], dtype=torch.float32),
            "scores": torch.tensor(mine[:, 5], dtype=torch.float32),
            "labels": torch.tensor(mine[:, 6]).long(),
        }
        target = {
            "boxes": torch.tensor([a["bbox"] for a in boxes], dtype=torch.float32).view(-1, 4),
            "labels": torch.tensor([a["category_id"] for a in boxes], dtype=torch.long),
            "iscrowd": torch.tensor([a["iscrowd"] for a in boxes], dtype=torch.long),
            "area": torch.tensor([a["area"] for a in boxes], dtype=torch.float32),
        }
        metric.update([found], [target])
    return float(metric.compute()["map"])


def gather_on(rank: int, world_size: int, rows: int, boxes: int, file: str) -> None:
    """Gather the rows of all ranks and print the duration on rank zero."""
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world_size)
    box = Detection((1.5, 2.5, 30.25, 40.75), "person", 0.9)
    mine = {i: Row(i, (box,) * boxes, 0.5, True) for i in range(rank, rows, world_size)}
    gather(mine, world_size)  # the first call sets up connections and is not measured
    dist.barrier()
    start = time.perf_counter()
    everything = gather(mine, world_size)
    seconds = time.perf_counter() - start
    assert len(everything) == rows
    if rank == 0:
        print(json.dumps({"gather": world_size, "images": rows, "boxes": rows * boxes, "seconds": round(seconds, 4)}))
    dist.destroy_process_group()


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--detections", type=int, default=100_000)
    parser.add_argument("--ranks", type=int, default=2)
    arguments = parser.parse_args(args)
    torch.set_num_threads(1)
    tools: dict[str, Callable[[Path, Array], float]] = {
        "hotcoco": with_backend("hotcoco"),
        "pycocotools": with_backend("pycocotools"),
    }
    if find_spec("torchvision") is not None:
        tools["torchmetrics"] = with_torchmetrics
    with tempfile.TemporaryDirectory() as folder:
        path, results = make(arguments.images, arguments.detections, Path(folder))
        seconds = {}
        for name, evaluate in tools.items():
            start = time.perf_counter()
            with contextlib.redirect_stdout(io.StringIO()):
                precision = evaluate(path, results)
            seconds[name] = time.perf_counter() - start
            print(json.dumps({"tool": name, "seconds": round(seconds[name], 3), "AP": precision}))
        print(json.dumps({"hotcoco_over_pycocotools": round(seconds["pycocotools"] / seconds["hotcoco"], 1)}))
        boxes = arguments.detections // arguments.images
        mp.spawn(gather_on, (arguments.ranks, arguments.images, boxes, f"{folder}/rendezvous"), arguments.ranks)


if __name__ == "__main__":
    main()
