from __future__ import annotations

import contextlib
import io
import json
import math
import random
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from vrft.errors import ConfigurationError
from vrft.evaluators import AccuracyEvaluator, CocoEvaluator
from vrft.evaluators.average_precision import UNDEFINED
from vrft.evaluators.coco import Row
from vrft.evaluators.confidence import with_confidence
from vrft.types import Answer, Detection, Sample

NAMES = {1: "cat", 5: "dog", 8: "never there"}


def random_case(rng: random.Random, folder: Path) -> tuple[Path, list[Row]]:
    """Write a COCO file with crowds and small boxes; return it with detections near its boxes with tied scores."""
    images = [{"id": 2**30 + i, "file_name": f"{i}.png", "width": 300, "height": 300} for i in range(12)]
    annotations = []
    rows = []
    for image in images:
        for category in (1, 5):
            found = []
            for _ in range(rng.randint(0, 4)):
                x, y, w, h = (rng.uniform(0, 150) for _ in range(4))
                crowd = int(rng.random() < 0.15)
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image["id"],
                        "category_id": category,
                        "bbox": [x, y, w, h],
                        "area": w * h * rng.uniform(0.5, 1),
                        "iscrowd": crowd,
                    }
                )
                for _ in range(rng.randint(0, 2)):
                    shift = [rng.gauss(0, 8) for _ in range(4)]
                    box = (x + shift[0], y + shift[1], x + w + abs(shift[2]), y + h + abs(shift[3]))
                    found.append(Detection(box, NAMES[category], rng.choice([0.1, 0.5, 0.9])))
            rows.append(Row(int(image["id"]), tuple(found), 0.0, True))
    file = folder / "truth.json"
    categories = [{"id": i, "name": name} for i, name in NAMES.items()]
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return file, rows


def by_pycocotools(file: Path, rows: list[Row]) -> COCOeval:
    """Return pycocotools' evaluation of rows, which has computed nothing yet."""
    ids = {name: i for i, name in NAMES.items()}
    results = [
        [row.image_id, *(round(v, 2) for v in (x0, y0, x1 - x0, y1 - y0)), score, ids[name]]
        for row in rows
        for (x0, y0, x1, y1), name, score in row.detections
    ]
    truth = COCO(str(file))
    return COCOeval(truth, truth.loadRes(np.array(results)), "bbox")


def pycocotools_ap(file: Path, rows: list[Row]) -> tuple[float, float]:
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = by_pycocotools(file, rows)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0]), float(evaluation.stats[1])


def precision_of(evaluator: CocoEvaluator, rows: list[Row]) -> tuple[float, float]:
    numbers = evaluator.measure(rows)
    return numbers["AP"], numbers["AP50"]


@pytest.mark.parametrize("seed", range(10))
def test_average_precision_equals_that_of_pycocotools(seed: int, tmp_path: Path) -> None:
    file, rows = random_case(random.Random(seed), tmp_path)
    assert precision_of(CocoEvaluator(str(file)), rows) == pytest.approx(pycocotools_ap(file, rows), abs=1e-12)


def test_a_subset_is_selected_from_the_full_evaluation(tmp_path: Path) -> None:
    file, rows = random_case(random.Random(3), tmp_path)
    each = [precision_of(CocoEvaluator(str(file), [name]), rows)[0] for name in ("cat", "dog")]
    assert np.mean(each) == pytest.approx(pycocotools_ap(file, rows)[0], abs=1e-12)
    assert each[0] != each[1]
    assert precision_of(CocoEvaluator(str(file), ["cat", "never there"]), rows)[0] == each[0]
    assert precision_of(CocoEvaluator(str(file), ["never there"]), rows) == (UNDEFINED, UNDEFINED)


def test_images_without_questions_can_be_left_out(tmp_path: Path) -> None:
    file, rows = random_case(random.Random(5), tmp_path)
    held_out = rows[: len(rows) // 2]
    asked = {row.image_id for row in held_out}
    content = json.loads(file.read_text())
    content["images"] = [row for row in content["images"] if row["id"] in asked]
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] in asked]
    whole, alone = file, tmp_path / "part.json"
    alone.write_text(json.dumps(content))
    found = precision_of(CocoEvaluator(str(file), images="asked"), held_out)
    with pytest.warns(UserWarning, match=r"coco: not asked about: \d of 1\d images with true boxes"):
        everything = precision_of(CocoEvaluator(str(file)), held_out)
    assert everything == pytest.approx(pycocotools_ap(whole, held_out), abs=1e-12)
    assert found == pytest.approx(pycocotools_ap(alone, held_out), abs=1e-12)
    assert found != pytest.approx(pycocotools_ap(file, held_out), abs=1e-3)


def test_no_detections_is_zero_not_an_error(tmp_path: Path) -> None:
    file, rows = random_case(random.Random(0), tmp_path)
    empty = [row._replace(detections=()) for row in rows]
    assert precision_of(CocoEvaluator(str(file)), empty) == (0.0, 0.0)


def test_samples_of_another_file_are_refused(tmp_path: Path) -> None:
    file, rows = random_case(random.Random(0), tmp_path)
    with pytest.raises(ConfigurationError, match="has no image 5"):
        precision_of(CocoEvaluator(str(file)), [*rows, Row(5, (), 0.0, True)])


SAMPLE = Sample(0, (Image.new("RGB", (100, 100)),), 7, "cat", (Detection((0, 0, 10, 10), "cat"),))


@pytest.mark.parametrize(
    ("value", "iou"),
    [
        ((Detection((0, 0, 10, 10), "cat", 0.1),), 1.0),
        ((Detection((0, 0, 10, 5), "cat"),), 0.5),
        ((Detection((0, 0, 10, 10), "cat"), Detection((50, 50, 60, 60), "cat")), 0.5),  # a surplus box lowers the mean
        ((), 0.0),
        (None, 0.0),
    ],
)
def test_miou_of_one_answer(value: tuple[Detection, ...] | None, iou: float, tmp_path: Path) -> None:
    row = CocoEvaluator("unused").row(Answer("", "", value, True), SAMPLE)
    assert row.iou == pytest.approx(iou)
    assert row.valid == (value is not None)
    assert row.image_id == 7


def looped_iou(predicted: list[Detection], true: list[Detection]) -> float:
    """Return the score of one answer by plain loops: by falling confidence, each box takes the best of its label."""
    free, total = list(true), 0.0
    for label, box in ((d.label, d.box) for d in sorted(predicted, key=lambda d: -(d.score or 0))):
        best, best_iou = None, 0.0
        for other in free:
            width, height = (min(box[i + 2], other.box[i + 2]) - max(box[i], other.box[i]) for i in (0, 1))
            both = max(width, 0) * max(height, 0)
            areas = sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (box, other.box))
            if label == other.label and both / (areas - both) > best_iou:
                best, best_iou = other, both / (areas - both)
        if best is not None:
            free.remove(best)
            total += best_iou
    return total / max(len(predicted), len(true))


def test_miou_matches_boxes_within_their_label() -> None:
    rng = random.Random(0)

    def draw(most: int) -> list[Detection]:
        corners = [(rng.randint(0, 40), rng.randint(0, 40)) for _ in range(rng.randint(1, most))]
        return [Detection((x, y, x + 40, y + 30), rng.choice("ab"), rng.random()) for x, y in corners]

    for _ in range(100):
        predicted, true = draw(6), draw(4)
        sample = Sample(0, (SAMPLE.image,), 7, "a, b", tuple(box._replace(score=None) for box in true))
        row = CocoEvaluator("unused").row(Answer("", "", tuple(predicted), True), sample)
        assert row.iou == pytest.approx(looped_iou(predicted, true), abs=1e-12)


def test_correct_no_objects_has_miou_one() -> None:
    nothing = Sample(0, (SAMPLE.image,), 7, "cat", ())
    assert CocoEvaluator("unused").row(Answer("", "", (), True), nothing).iou == 1.0


def test_accuracy_counts_names_not_substrings() -> None:
    evaluator = AccuracyEvaluator()
    sample = Sample(0, (SAMPLE.image,), 0, "", "Boeing 737-200")
    answers = [
        Answer("", "", "boeing 737 200", True),
        Answer("", "", "737-200", True),
        Answer("", "", None, False),
        Answer("", "", "Boeing_737-200", False),
    ]
    rows = [evaluator.row(answer, sample) for answer in answers]
    assert evaluator.scores(rows) == {"accuracy": 0.5, "class_accuracy": 0.5, "valid": 0.5}


def test_classes_count_equally_in_the_mean_over_classes(tmp_path: Path) -> None:
    evaluator = AccuracyEvaluator()
    samples = [Sample(i, (SAMPLE.image,), 0, "", name) for i, name in enumerate(["rose", "rose", "rose", "lily"])]
    given = ["rose", "rose", "lily", "tulip"]
    rows = [evaluator.row(Answer("", "", name, True), s) for name, s in zip(given, samples, strict=True)]
    assert evaluator.scores(rows)["accuracy"] == 0.5
    assert evaluator.scores(rows)["class_accuracy"] == pytest.approx((2 / 3 + 0) / 2)
    evaluator.write(tmp_path, rows)
    lines = (tmp_path / "accuracy_per_class.csv").read_text().split()
    assert lines == ["class,images,accuracy", "lily,1,0.0", "rose,3,0.6666666666666666"]
    with Image.open(tmp_path / "confusion.png") as picture:  # rows lily and rose; columns lily, rose and other
        cells = [[picture.getpixel((150 + 18 * j + 9, 150 + 18 * i + 9)) for j in range(3)] for i in range(2)]
    assert cells[0] == [(255, 255, 255), (255, 255, 255), (50, 90, 200)]
    assert cells[1][1] < cells[1][0] < (255, 255, 255) == cells[1][2]


def test_an_evaluation_writes_its_results_and_settings(tmp_path: Path) -> None:
    file, rows = random_case(random.Random(3), tmp_path)
    evaluator = CocoEvaluator(str(file))
    logged = evaluator.scores(rows)
    evaluator.write(tmp_path / "out", rows)
    results = tmp_path / "out" / "detections_truth_vrft_results.json"
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(file))
        again = COCOeval(truth, truth.loadRes(str(results)), "bbox")
        again.evaluate()
        again.accumulate()
        again.summarize()
    assert logged["coco/AP"] == pytest.approx(again.stats[0], abs=1e-12)
    about = json.loads((tmp_path / "out" / "coco.meta.json").read_text())
    assert about["undefined"] == ["never there"]
    assert (
        "coco: categories without a true box in these images are left out of means: never there" in evaluator.warnings
    )
    assert about["numbers"]["AP"] == logged["coco/AP"]
    assert 0 < about["tied_scores"] <= 1
    each = (tmp_path / "out" / "coco_per_category.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in each] == ["category", "cat", "dog"]
    with Image.open(tmp_path / "out" / "coco_precision_recall.png") as picture:
        assert len(picture.convert("RGB").getcolors(1 << 16) or ()) > 4


def test_boxes_without_confidence_cause_a_warning(tmp_path: Path) -> None:
    file, rows = random_case(random.Random(3), tmp_path)
    silent = [row._replace(detections=tuple(box._replace(score=None) for box in row.detections)) for row in rows]
    with pytest.warns(UserWarning, match="without a stated confidence, which counts as 1.0"):
        first = CocoEvaluator(str(file)).measure(silent)
    assert first == CocoEvaluator(str(file)).measure(silent)


def spoken(text: str, log_probs: dict[str, float], *boxes: Detection) -> Answer:
    """Return an answer with one token per word or mark, whose log-probability is 0 unless given in `log_probs`."""
    pieces = re.findall(r"\w+|\W", text)
    return Answer(text, "", boxes, True, tuple((piece, log_probs.get(piece, 0.0)) for piece in pieces))


TWO_BOXES = "<think>{7}</think><answer>[{'Position': [1, 2, 30, 40]}, {'Position': [5, 6, 70, 80]}]</answer>"
PAIR = (Detection((1, 2, 30, 40), "cat", 0.5), Detection((5, 6, 70, 80), "cat", 0.25))


def test_confidence_can_be_the_probability_of_a_boxs_tokens() -> None:
    answer = spoken(TWO_BOXES, {"30": -1.0, "70": -2.0, "80": -3.0, "7": -100.0}, *PAIR)
    first, second = (len(re.findall(r"\w+|\W", item)) for item in re.findall(r"\{'.*?\}", TWO_BOXES))
    expected = [math.exp(-1 / first), math.exp(-5 / second)]
    assert [box.score for box in with_confidence(answer, "logprob")] == pytest.approx(expected)
    assert [box.score for box in with_confidence(answer, "product")] == pytest.approx(
        [0.5 * expected[0], 0.25 * expected[1]]
    )
    assert with_confidence(answer, "answer") == PAIR


def test_boxes_without_tokens_of_their_own_share_the_probability_of_the_answer() -> None:
    answer = spoken("<answer>nothing like it</answer>", {"nothing": -3.0}, *PAIR)
    shared = math.exp(-3 / len(answer.tokens))
    assert [box.score for box in with_confidence(answer, "logprob")] == pytest.approx([shared, shared])
    assert [box.score for box in with_confidence(answer, "product")] == pytest.approx([0.5 * shared, 0.25 * shared])
    corners = spoken("<answer>(1,2),(30,40)</answer>", {"30": -2.0}, PAIR[0]._replace(score=None))
    for confidence in ("logprob", "product"):  # a product without a stated confidence is the probability
        assert with_confidence(corners, confidence)[0].score == pytest.approx(math.exp(-2 / 11))


def test_an_answer_without_tokens_has_its_stated_confidences_only() -> None:
    answer = Answer("", "", PAIR, True)
    assert with_confidence(answer, "product") == PAIR
    assert [box.score for box in with_confidence(answer, "logprob")] == [None, None]


def test_what_an_evaluator_says_is_printed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """`check` runs before each evaluation of a run."""
    said: list[str] = []
    monkeypatch.setattr("vrft.evaluators.base.rank_zero_info", said.append)  # threads of libraries log, too
    evaluator = AccuracyEvaluator()
    for message in ("mean over 8 of 8", "mean over 8 of 8", "mean over 3 of 8"):
        evaluator.say(message)
    assert said == ["mean over 8 of 8", "mean over 3 of 8"]
