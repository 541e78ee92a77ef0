"""Bootstrap intervals against scipy's, and the comparison of two checkpoints."""

from __future__ import annotations

import contextlib
import io
import json
import random
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy.stats import bootstrap

from tests.helpers import CSV_ONLY, Command
from tests.helpers.finished import EVERYTHING
from vrft.__main__ import main
from vrft.cli.compare import free_path
from vrft.data.datasets.scenes import draw_scene, write_coco
from vrft.evaluators import AccuracyEvaluator, CocoEvaluator
from vrft.evaluators.accuracy import Row as Named
from vrft.evaluators.coco import Row
from vrft.evaluators.intervals import Comparison, as_json, compare, table
from vrft.run_dir import RunDir
from vrft.types import Detection
from vrft.utils.files import write_json
from vrft.utils.intervals import Interval


def named(shares: list[float], seed: int) -> list[Named]:
    rng = random.Random(seed)
    return [Named("rose", "rose" if rng.random() < share else "lily", True) for share in shares]


def test_intervals_of_a_mean_equal_those_of_scipy() -> None:
    before, after = named([0.4] * 150, 0), named([0.7] * 150, 1)
    found = compare(AccuracyEvaluator(), before, after, resamples=3000, seed=0)["accuracy"]
    for rows, interval in ((before, found.before), (after, found.after)):
        values = np.array([row.named == row.true for row in rows], float)
        scipys = bootstrap((values,), np.mean, method="percentile", n_resamples=3000, rng=1).confidence_interval
        assert interval.value == values.mean()
        assert interval[1:] == pytest.approx(scipys, abs=0.015)
    difference = np.array([a.named == a.true for a in after], float) - [b.named == b.true for b in before]
    scipys = bootstrap((difference,), np.mean, method="percentile", n_resamples=3000, rng=1).confidence_interval
    assert found.difference[1:] == pytest.approx(scipys, abs=0.015)


def test_a_model_compared_with_itself_has_difference_0() -> None:
    rows = named([0.5] * 40, 0)
    found = compare(AccuracyEvaluator(), rows, rows, resamples=50, seed=0)
    assert found["accuracy"].difference == (0, 0, 0)
    assert found["accuracy"].before.low < found["accuracy"].before.value < found["accuracy"].before.high


def near(box: Detection, rng: random.Random) -> Detection:
    x0, y0, x1, y1 = (value + rng.gauss(0, 2) for value in box.box)
    return Detection((x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)), box.label, round(rng.random(), 3))


def test_an_image_that_is_drawn_twice_counts_as_two(tmp_path: Path) -> None:
    rng = random.Random(0)
    scenes = [draw_scene(random.Random(i)) for i in range(6)]
    write_coco(scenes, tmp_path / "x.json", tmp_path / "images")
    rows = [[Row(i, tuple(near(box, rng) for box in boxes), 0.5, True)] for i, (_, boxes) in enumerate(scenes, 1)]
    draw = [0, 0, 3, 5, 5, 5]
    evaluator = CocoEvaluator(str(tmp_path / "x.json"))
    found = evaluator.scores_of([rows[i] for i in draw])
    assert evaluator.images_of_scores([*range(1, 7)])["coco/APs"] == 6
    write_coco([scenes[i] for i in draw], tmp_path / "y.json", tmp_path / "again")
    ids = {category["name"]: category["id"] for category in json.loads((tmp_path / "x.json").read_text())["categories"]}
    results = [
        [number, *(round(v, 2) for v in (x0, y0, x1 - x0, y1 - y0)), score, ids[label]]
        for number, i in enumerate(draw, 1)
        for (x0, y0, x1, y1), label, score in rows[i][0].detections
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(tmp_path / "y.json"))
        evaluation = COCOeval(truth, truth.loadRes(np.array(results)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert found["coco/AP"] == pytest.approx(evaluation.stats[0], abs=1e-12)
    assert found["coco/AP"] > 0


@pytest.mark.parametrize(("images", "low", "shown"), [(7, None, "0.372 -"), (8, 0.372, "0.372 [0.372, 0.372]")])
def test_a_score_that_few_images_decide_has_no_interval(images: int, low: float | None, shown: str) -> None:
    found = {"coco/APs": Comparison(Interval(0.372, 0.372, 0.372), *[Interval(-0.0001, -0.0001, 0)] * 2, images, 9)}
    assert as_json(found, ("a", "b"))["coco/APs"]["a"]["low"] == low
    drawn = table(found, ("a", "b"), "9 test images")
    assert next(iter(drawn.columns[1].cells)) == shown
    assert "-0.000" not in next(iter(drawn.columns[3].cells))
    assert (drawn.caption is None) == (low is not None)


def test_comparisons_of_other_models_are_kept(tmp_path: Path) -> None:
    paths = []
    for content in ({"a": 1}, {"a": 2}, {"a": 1}):
        paths.append(free_path(RunDir(tmp_path), "base-last", content))
        paths[-1].parent.mkdir(exist_ok=True)
        write_json(paths[-1], content)
    assert [path.name for path in paths] == [f"comparison-base-last{end}.json" for end in ("", "-2", "")]


def test_two_checkpoints_are_compared_in_one_table(
    quick_fit: Command, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["test", *quick_fit(*EVERYTHING, CSV_ONLY)[1:], "--ckpt_path=last", "--against=base", "--resamples=20"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "run" / "evaluation" / "comparison-base-last.json").read_text())
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    for key, name in (("base", "base"), ("last", "tuned")):
        assert found["coco/AP"][key]["value"] == pytest.approx(summary[name]["mAP"], abs=1e-6)
    images = found["mIoU"]["images"]
    assert images < 8
    assert f"{images} held-out images, 95% intervals over images" in said
    assert found["mIoU"]["difference"]["low"] is None
    assert main([*arguments[:-2], "--against=no.ckpt"]) == 2
    assert "against: no such checkpoint: no.ckpt" in capsys.readouterr().err
