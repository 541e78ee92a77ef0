"""The results file of `predict` has the boxes, the scores and the order of an evaluation of the same answers."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tests.helpers import formats
from tests.helpers.data import samples_of
from vrft.callbacks.predictions import prediction_row, write_coco_results
from vrft.data import YoloData
from vrft.evaluators import CocoEvaluator
from vrft.evaluators.confidence import Confidence
from vrft.run_dir import RunDir
from vrft.types import Answer, Detection


@pytest.mark.filterwarnings("ignore:coco. .*(share their score|without a stated confidence)")
@pytest.mark.parametrize("confidence", ["product", "answer"])
def test_predictions_are_the_results_of_an_evaluation(confidence: Confidence, tmp_path: Path) -> None:
    data = YoloData(str(formats.write_yolo(tmp_path / "x", 6)))
    _, samples = samples_of(data, tmp_path)
    rng = random.Random(0)
    evaluator = CocoEvaluator(confidence=confidence)
    evaluator.check(data)
    answers = []
    for sample in samples:
        near = [tuple(value + rng.randint(0, 3) for value in box.box) for box in sample.target]
        boxes = [Detection(box, sample.query, rng.choice([None, 0.5, 0.9])) for box in [*near, (3.0, 3.0, 3.001, 9.0)]]
        texts = [f"{{{n}}}" for n in range(len(boxes))]
        tokens = tuple((text, rng.choice([-0.1, -0.2])) for text in texts)
        answers.append(Answer("".join(texts), "", tuple(boxes), True, tokens=tokens))
    answers[-1] = Answer("", "", None, False)
    pairs = list(zip(answers, samples, strict=True))
    evaluator.measure([evaluator.row(*pair) for pair in pairs])
    evaluator.write(tmp_path / "val-0", [evaluator.row(*pair) for pair in pairs])
    lines = [json.loads(json.dumps(prediction_row(*pair, data, confidence))) for pair in pairs]
    path = write_coco_results(RunDir(tmp_path), lines, [line["ranked"] for line in lines], data.category_ids())
    expected = json.loads((tmp_path / "val-0" / "detections_annotations_val_vrft_results.json").read_text())
    assert json.loads(path.read_text()) == expected
    assert len({entry["score"] for entry in expected}) == len(expected) > 8
