"""Evaluate average precision of boxes under COCO's rules."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning.pytorch.loggers import Logger

from vrft.boxes import iou_matrix, matched_iou
from vrft.data.categories import ANNOTATED, CategoryData
from vrft.data.datamodule import VisionData
from vrft.data.formats.coco_fields import id_order
from vrft.data.record_checks import targets_over_limit
from vrft.data.records import RecordData
from vrft.data.splits import Categories, category_names
from vrft.errors import ConfigurationError
from vrft.evaluators.average_precision import COLUMNS, UNDEFINED, Array, Backend, Convention, Curves, Format
from vrft.evaluators.base import Evaluator, defined
from vrft.evaluators.calibration import Calibration
from vrft.evaluators.confidence import Confidence, with_confidence
from vrft.evaluators.curve_files import CurveFiles
from vrft.evaluators.detection_resampling import resampled_scores
from vrft.evaluators.detection_rows import Row, plain_scores, rows_by_confidence, rows_of_results, table_of, with_scores
from vrft.evaluators.resampling import Scores
from vrft.evaluators.results import entries_of
from vrft.evaluators.ties import score_warnings, tie_key, tied_share, without_ties
from vrft.evaluators.truth import Truth
from vrft.rewards.detection import within_labels
from vrft.types import Answer, Id, Sample
from vrft.utils.display import counted
from vrft.utils.files import write_json
from vrft.utils.regular_files import read_regular

MAX_NAMES = 10
"""Maximum number of categories that a warning names."""


class CocoEvaluator(Evaluator[Row]):
    """Logs COCO's twelve numbers as `val/coco/AP` and so on, `val/mIoU` and `val/valid`.

    Numbers are in 0..1, averaged over the configured categories with true boxes. mIoU is the mean over prompts of the
    summed IoU of boxes matched within labels, in descending order of stated confidence, over max(true, predicted
    boxes). An unreadable answer counts as one without boxes.

    Whatever `confidence` is, `val/coco/AP_answer` and `val/coco/AP_logprob` are AP by stated confidence and by token
    probability, and `val/coco/ECE` is the expected calibration error of the stated confidences. Each is omitted if its
    confidences are unknown. Writes a results file in COCO's format, the settings of the evaluation, tables per category
    and per bin of confidence, and precision-recall curves.
    """

    format: Format = "coco"

    def __init__(
        self,
        annotations: str | None = None,
        categories: Categories = None,
        images: Literal["all", "asked"] = "all",
        backend: Backend = "hotcoco",
        convention: Convention = "standard",
        confidence: Confidence = "product",
    ) -> None:
        """Set the ground truth and the rules.

        Args:
            annotations: COCO or LVIS file of the held-out samples; default: the boxes in the data.
            categories: names of the categories to average over, or a list of `vrft.data.splits`; default: all of
                `annotations`, or without it those that the data asks for.
            images: `all` counts objects in images without questions as missed, `asked` leaves such images out.
            backend: library that computes the numbers.
            convention: `visual_rft` averages LVIS's AP over all ranges of area, as Visual-RFT does.
            confidence: score of a box: `answer`, the stated confidence; `logprob`, the geometric mean of its token
                probabilities; or `product` of both, which is the latter if no confidence is stated.
        """
        super().__init__()
        self.annotations = self.path = None if annotations is None else Path(annotations)
        field = f"trainer.callbacks: {type(self).__name__}"
        self.asked_categories = self.categories = category_names(categories, f"{field}.categories")
        self.images, self.backend, self.convention, self.confidence = images, backend, convention, confidence
        self.field = field
        self._truth: Truth | None = None
        self.tables: dict[str, Any] | None = None
        self.against: Path | None = None
        """Results file of another detector, to compare with on the same images."""
        self.rows_against: list[Row] = []
        self.queries: str | None = None
        self.curves: Curves | None = None
        self.calibration: Calibration | None = None
        self.by_confidence: dict[str, float] = {}
        self.results: Array = np.zeros((0, COLUMNS))
        self.dropped, self.tied = 0, 0.0

    @property
    def truth(self) -> Truth:
        """The ground truth. A file is read on first access, because generated data is written after `__init__`."""
        if self._truth is None:
            assert self.path is not None
            self._truth = Truth.read(self.path, f"{self.field}.annotations", skip_bad=True)
        return self._truth

    def use_boxes_of(self, data: VisionData) -> None:
        """Use the ground truth and the categories of the data."""
        records = data.evaluated_set().records if isinstance(data, RecordData) else []
        if not isinstance(data, RecordData) or not any(isinstance(record.target, tuple) for record in records):
            raise ConfigurationError(f"{self.field}.annotations: {type(data).__name__} has no boxes; expected a file")
        self.path = data.truth_file()
        if self.path is None:
            self.tables = data.truth_tables()
            if isinstance(data, CategoryData) and data.chosen_pairs() is not None:
                self.say(f"{self.format}: objects that data.val_shots did not choose are ignored")
            self._truth = Truth(self.tables, f"the data ({type(data).__name__})", self.field, skip_bad=True)
        else:
            self._truth = Truth.read(self.path, self.field, skip_bad=True, encoding=data.encoding)
        if isinstance(data, CategoryData) and self.asked_categories is None:
            self.categories = data.categories[data.evaluated_split()]

    def check(self, data: VisionData) -> None:
        if self.annotations is None:
            self.use_boxes_of(data)
        self.truth.check_names(self.categories or (), f"{self.field}.categories")
        for message in self.truth.warnings:
            self.warn(message)
        self.queries = data.evaluated_queries() if isinstance(data, CategoryData) else None
        averaged = len(self.truth.categories) if self.categories is None else len(self.categories)
        known = counted(len(self.truth.categories), "category")
        self.say(
            f"{self.format}: mean over {averaged} of {known}, {self.images} images, {self.convention} convention, "
            f"confidence by {self.confidence}, {self.backend}"
        )
        if isinstance(data, RecordData):
            records = data.evaluated_set().records
            self.check_images({record.image_id for record in records})
            if over := targets_over_limit(records):
                self.note(over)  # the data module has already warned in the console
        if self.against is not None:
            self.rows_against, messages = rows_of_results(self.against, self.truth)
            if self.queries == ANNOTATED:
                messages.append(
                    f"{self.against}: its boxes are compared with answers to questions about the categories that are "
                    "present in each image, which the other detector was not told; with a held-out file, "
                    "data.val_queries=all asks for all"
                )
            for message in messages:
                self.warn(message)

    def check_images(self, asked: set[Id]) -> None:
        """Raise ConfigurationError if an image is not in the file."""
        if unknown := sorted(asked - self.truth.image_numbers.keys(), key=id_order):
            raise ConfigurationError(
                f"{self.field}.annotations: {self.truth.source} has no image {unknown[0]!r}; expected the instances "
                "file of the held-out samples"
            )

    def row(self, answer: Answer, sample: Sample) -> Row:
        assert isinstance(sample.target, tuple)
        detections = with_confidence(answer, self.confidence)
        stated = with_confidence(answer, "answer")
        scores = [1.0 if d.score is None else d.score for d in stated]
        iou = matched_iou(within_labels(stated, sample.target, iou_matrix), scores)
        key = tie_key(sample) if detections else 0
        probable = with_confidence(answer, "logprob")
        return Row(sample.image_id, detections, iou, answer.valid, key, stated=stated, probable=probable)

    def scores(self, rows: list[Row]) -> dict[str, float]:
        numbers = self.measure(rows) | self.by_confidence
        return {**defined(numbers, self.format, UNDEFINED), **plain_scores(rows)}

    def image_of(self, row: Row, index: int) -> Id:
        return row.image_id

    def scores_of(self, images: list[list[Row]]) -> dict[str, float]:
        ids = [rows[0].image_id for rows in images]
        rows = [row._replace(image_id=number) for number, group in enumerate(images) for row in group]
        truth = self.truth.resampled(ids)
        curves = self.compare(truth, without_ties(*table_of(rows, truth)[:2]), None)
        numbers = curves.numbers(self.format, self.convention) | self.compare_confidences(rows, truth, None)[0]
        return {**defined(numbers, self.format, UNDEFINED), **plain_scores(rows)}

    def images_of_scores(self, images: Sequence[Id]) -> dict[str, int]:
        """Return, for each score, the number of images with objects that it is about, e.g. small ones."""
        found: Counter[str] = Counter()
        for key in images:
            curves = self.compare(self.truth.resampled([key]), np.zeros((0, COLUMNS)), None)
            numbers = curves.numbers(self.format, self.convention)
            found.update({f"{self.format}/{name}": int(value != UNDEFINED) for name, value in numbers.items()})
        return {**found}

    def resampled(self, images: Sequence[list[Row]], draws: Sequence[Sequence[int]]) -> Scores:
        return resampled_scores(self.truth, images, draws, self.format, self.convention, self.categories)

    def measure(self, rows: list[Row]) -> dict[str, float]:
        """Return the benchmark's numbers, and set `by_confidence` to the numbers that compare confidences."""
        asked = {row.image_id for row in rows}
        images = asked if self.images == "asked" else None
        self.check_images(asked)
        table, keys, self.dropped = table_of(rows, self.truth)
        self.tied = tied_share(table)
        self.results = without_ties(table, keys)
        self.curves = self.compare(self.truth, self.results, images)
        self.check_meaning(rows)
        self.by_confidence, self.calibration = self.compare_confidences(rows, self.truth, images)
        return self.curves.numbers(self.format, self.convention)

    def compare_confidences(
        self, rows: list[Row], truth: Truth, images: set[Id] | None
    ) -> tuple[dict[str, float], Calibration | None]:
        """Return AP by each known confidence with the calibration error, and the calibration of stated confidences."""
        numbers, found = {}, None
        for confidence, ranked in rows_by_confidence(rows).items():
            curves = self.compare(truth, without_ties(*table_of(ranked, truth)[:2]), images)
            numbers[f"AP_{confidence}"] = curves.numbers(self.format, self.convention)["AP"]
            if confidence == "answer":
                table, _, _ = table_of(with_scores(ranked), truth)
                found = truth.calibration(table, self.format, self.categories, images)
        if found is not None:
            numbers["ECE"] = found.error
        return numbers, found

    def compare(self, truth: Truth, results: Array, images: set[Id] | None) -> Curves:
        """Evaluate results, (N, 7), for the configured categories, on `images` or on all images."""
        curves = truth.evaluate(results, self.format, self.backend, images)
        return curves if self.categories is None else curves.select(self.categories)

    def check_meaning(self, rows: list[Row]) -> None:
        """Warn about circumstances that make the numbers less meaningful."""
        with_boxes = self.truth.images_with(self.categories)
        if self.images == "all" and (left_out := with_boxes.difference(row.image_id for row in rows)):
            images = counted(len(with_boxes), "image")
            self.warn(
                f"{self.format}: not asked about: {len(left_out)} of {images} with true boxes; "
                f"their objects count as missed, unless {self.field}.images=asked leaves them out"
            )
        assert self.curves is not None
        if undefined := self.curves.undefined():
            names = ", ".join(undefined[:MAX_NAMES]) + (", …" if len(undefined) > MAX_NAMES else "")
            self.note(f"{self.format}: categories without a true box in these images are left out of means: {names}")
        found = [box for row in rows for box in row.detections]
        for message in score_warnings(found, self.tied, self.confidence, self.field):
            self.warn(f"{self.format}: {message}")

    def quality(self, row: Row) -> float:
        return row.iou

    def write(self, folder: Path, rows: list[Row]) -> None:
        assert self.curves is not None
        path = self.write_truth(folder)
        write_json(folder / f"detections_{path.stem}_vrft_results.json", entries_of(self.results, self.truth))
        settings = {
            "annotations": str(path),
            "sha256": hashlib.sha256(read_regular(path)).hexdigest(),
            "versions": {name: version(name) for name in ("hotcoco", "torch", "transformers")},
            "format": self.format,
            "convention": self.convention,
            "backend": self.backend,
            "confidence": self.confidence,
            "images": self.images,
            "queries": self.queries,
            "categories": list(self.curves.names),
            "undefined": self.curves.undefined(),
            "prompts": len(rows),
            "invalid": sum(not row.valid for row in rows),
            "without_area": self.dropped,
            "tied_scores": self.tied,
            "numbers": self.curves.numbers(self.format, self.convention),
            "by_confidence": self.by_confidence,
        }
        write_json(folder / f"{self.format}.meta.json", settings)
        self.curve_files().write(folder)

    def write_truth(self, folder: Path) -> Path:
        """Return the annotation file. Ground truth from the data is first written beside the evaluations."""
        if self.path is not None:
            return self.path
        path = folder.parent / f"annotations_{folder.name.partition('-')[0]}.json"
        write_json(path, self.tables)
        return path

    def show(self, loggers: Sequence[Logger], stage: str, folder: Path, step: int) -> None:
        self.curve_files().show(loggers, stage, folder, step)

    def curve_files(self) -> CurveFiles:
        """Return the tables and the picture behind the numbers of the last evaluation."""
        assert self.curves is not None
        return CurveFiles(self.curves, self.calibration, self.format, self.convention)
