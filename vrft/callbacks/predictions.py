"""Write the answers of `predict` as JSON lines, as a COCO results file and as pictures."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer

from vrft.callbacks.base import vision_trainer
from vrft.data import VisionData
from vrft.data.datamodule import data_of
from vrft.data.record_set import image_file
from vrft.data.records import RecordData
from vrft.evaluators.base import evaluators_of
from vrft.evaluators.coco import CocoEvaluator
from vrft.evaluators.confidence import Confidence, with_confidence
from vrft.evaluators.ties import break_ties, tie_key
from vrft.policy.checkpoint import BUILT_IN
from vrft.run_dir import RunDir
from vrft.training.checks import warn_of_replaced_images
from vrft.training.module import VisionModule
from vrft.training.progress_bar import phase
from vrft.types import Answer, Detection, Id, PromptBatch, Sample
from vrft.utils.drawing import COLOURS, draw_images, with_caption
from vrft.utils.files import write_json

Row = dict[str, Any]

MAX_STEM_BYTES = 200
"""Maximum number of bytes of an image's name in the name of its picture. File systems allow 255 in total."""

PICTURE = re.compile(r"\d{6,}-.*\.jpg", re.DOTALL)
"""Names of the pictures that `draw_all` writes."""


class Predictions(Callback):
    """Writes `predictions.jsonl` in the run's folder, and COCO's results file if answers are boxes.

    Boxes in the results file have the scores by which `CocoEvaluator` ranks them, with the evaluator's `confidence` if
    the config has a `CocoEvaluator`.

    Each rank writes its answers to its own file after every batch. At the end, the files are merged in the order of the
    data.
    """

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.run = RunDir.of(trainer)
        found = (evaluator.confidence for evaluator in evaluators_of(trainer) if isinstance(evaluator, CocoEvaluator))
        self.confidence: Confidence = next(found, "product")
        self.part = self.run.predictions_of_rank(trainer.global_rank)
        self.run.path.mkdir(parents=True, exist_ok=True)
        assert isinstance(pl_module, VisionModule)
        self.weights = str(trainer.ckpt_path or model_name(pl_module.policy.checkpoint))
        if trainer.is_global_zero:
            print(f"weights: {self.weights}")
        self.part.write_text("", encoding="utf-8")

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: PromptBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        warn_of_replaced_images(batch)
        data = data_of(trainer)
        with self.part.open("a", encoding="utf-8") as file:
            for answer, sample in zip(outputs, batch.samples, strict=True):
                if data.is_owned_by_rank(sample) and "replaced" not in sample.metadata:
                    row = prediction_row(answer, sample, data, self.confidence) | {"weights": self.weights}
                    file.write(json.dumps(row, allow_nan=False) + "\n")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer = vision_trainer(trainer)
        trainer.strategy.barrier("predictions")
        if not trainer.is_global_zero:
            return
        parts = [self.run.predictions_of_rank(rank) for rank in range(trainer.world_size)]
        rows = [json.loads(line) for part in parts for line in part.read_text(encoding="utf-8").split("\n") if line]
        rows.sort(key=lambda entry: entry["sample"])
        path = self.run.predictions
        ranked = [entry.pop("ranked") for entry in rows]
        path.write_text("".join(f"{json.dumps(entry)}\n" for entry in rows), encoding="utf-8")
        for part in parts:
            part.unlink()
        valid = sum(bool(entry["valid"]) for entry in rows)
        print(f"predictions: {path} ({valid} of {len(rows)} answers are valid)")
        remove_earlier(self.run)
        data = data_of(trainer)
        if any(isinstance(entry["answer"], list) for entry in rows):
            ids = data.category_ids() if isinstance(data, RecordData) else {}
            print(f"COCO results: {write_coco_results(self.run, rows, ranked, ids)}")
        if trainer.draw:
            print(f"pictures: {draw_all(self.run.predictions_drawn, rows, trainer)}")


def remove_earlier(run: RunDir) -> None:
    """Remove the boxes and pictures of an earlier command, but no file that `predict` did not write."""
    for stale in (run.predictions_coco, run.predictions_images):
        stale.unlink(missing_ok=True)
    for picture in run.predictions_drawn.glob("*.jpg"):
        if PICTURE.fullmatch(picture.name):
            picture.unlink()


def model_name(checkpoint: str) -> str:
    """Return the name of a built-in policy without its folder. Return any other checkpoint unchanged."""
    return Path(checkpoint).name if Path(checkpoint).parent == BUILT_IN else checkpoint


def prediction_row(answer: Answer, sample: Sample, data: VisionData, confidence: Confidence) -> Row:
    """Return an answer as plain values, with boxes in pixels of the upright image.

    The entry `ranked` has the tie key and the score of each box for the results file.
    """
    file = image_file(data.evaluated_set(), sample.index)
    boxes = answer.value if isinstance(answer.value, tuple) else None
    return {
        "sample": sample.index,
        "file": file,
        "image_id": sample.image_id,
        "width": sample.size[0],
        "height": sample.size[1],
        "query": sample.query,
        "completion": answer.text,
        "reasoning": answer.reasoning,
        "valid": answer.valid,
        "problem": answer.problem,
        "answer": answer.value if boxes is None else [box._asdict() for box in boxes],
        "ranked": [tie_key(sample) if boxes else 0, [box.score for box in with_confidence(answer, confidence)]],
    }


def write_coco_results(
    run: RunDir, rows: Sequence[Row], ranked: Sequence[tuple[int, list[float | None]]], ids: dict[str, Id]
) -> Path:
    """Write `predictions_coco.json`, and its images and categories in `predictions_images.json`. Return the first path.

    A box without a label has the query as its category. As in an evaluation, boxes without area and boxes whose
    category is not in `ids` are left out, and ties are broken. If `ids` is empty, categories are numbered by name.
    """
    boxes = [
        (entry, box, box["label"] or entry["query"], key, 1.0 if score is None else score)
        for entry, (key, scores) in zip(rows, ranked, strict=True)
        for box, score in zip(entry["answer"] if scores else (), scores, strict=True)
    ]
    ids = ids or {name: number for number, name in enumerate(sorted({label for _, _, label, *_ in boxes}), 1)}
    results, keys = [], []
    for entry, box, label, key, score in boxes:
        x0, y0, x1, y1 = box["box"]
        bbox = [round(v, 2) for v in (x0, y0, x1 - x0, y1 - y0)]
        if label in ids and min(bbox[2:]) > 0:
            found = {"image_id": entry["image_id"], "category_id": ids[label], "bbox": bbox, "score": score}
            results.append(found)
            keys.append(key)
    unique = break_ties(np.array([found["score"] for found in results], np.float64), np.array(keys, np.uint64))
    results = [found | {"score": score} for found, score in zip(results, unique.tolist(), strict=True)]
    images = {
        entry["image_id"]: {key: entry[name] for key, name in (("id", "image_id"), ("file_name", "file"))}
        | {"width": entry["width"], "height": entry["height"]}
        for entry in rows
    }
    categories = [{"id": number, "name": name} for name, number in ids.items()]
    about = {"images": [*images.values()], "categories": categories, "annotations": []}
    write_json(run.predictions_images, about)
    write_json(run.predictions_coco, results)
    return run.predictions_coco


def draw_all(folder: Path, rows: Sequence[Row], trainer: Trainer) -> Path:
    """Draw each image with its answers, one colour per query. Return the folder."""
    data = data_of(trainer)
    folder.mkdir(parents=True, exist_ok=True)
    images = [list(group) for _, group in itertools.groupby(rows, lambda entry: (entry["image_id"], entry["file"]))]
    with phase(trainer, "pictures", len(images), alone=True) as advance:
        for done, entries in enumerate(images, 1):
            sample: Sample = data.evaluated_set()[entries[0]["sample"]]
            layers = [(boxes_of(entry), COLOURS[i % len(COLOURS)]) for i, entry in enumerate(entries)]
            picture = with_caption(draw_images(sample, layers), [*captions(entries)])
            stem = os.fsencode(Path(entries[0]["file"] or "image").stem)[:MAX_STEM_BYTES].decode(errors="ignore")
            picture.save(folder / f"{entries[0]['sample']:06d}-{stem}.jpg", quality=90)
            advance(done)
    return folder


def boxes_of(entry: Row) -> list[Detection]:
    """Return the boxes of a row. A box without a label gets the query as its label."""
    answer = entry["answer"] if isinstance(entry["answer"], list) else []
    return [Detection(tuple(box["box"]), box["label"] or entry["query"], box["score"]) for box in answer]


def captions(entries: Sequence[Row]) -> Iterator[str]:
    """Yield captions for the answers that are not boxes."""
    for entry in entries:
        query = f"{entry['query']}: " if entry["query"] else ""
        if entry["answer"] is None:
            yield f"{query}can't be read"
        elif isinstance(entry["answer"], str):
            yield f"{query}{entry['answer']}"
        elif not entry["answer"]:
            yield f"{query}nothing"
