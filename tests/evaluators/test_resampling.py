"""Scores of bootstrap samples: the quick way for boxes against the evaluator's own scores of the same samples."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tests.evaluators.test_intervals import named, near
from vrft.data.datasets.scenes import draw_scene, write_coco
from vrft.evaluators import AccuracyEvaluator, CocoEvaluator, LvisEvaluator
from vrft.evaluators.accuracy import Row as Named
from vrft.evaluators.coco import Row
from vrft.evaluators.resampling import MIN_IMAGES, rows_by_image, write_resampled
from vrft.utils.intervals import bootstrap_draws


@pytest.mark.parametrize("kind", [CocoEvaluator, LvisEvaluator])
@pytest.mark.parametrize("categories", [None, ["red", "blue"]], ids=["all", "some"])
def test_resampled_scores_are_those_of_repeated_images(
    kind: type[CocoEvaluator], categories: list[str] | None, tmp_path: Path
) -> None:
    rng = random.Random(0)
    scenes = [draw_scene(random.Random(i)) for i in range(12)]
    write_coco(scenes, tmp_path / "x.json", tmp_path / "images")
    content = json.loads((tmp_path / "x.json").read_text())
    for image in content["images"]:  # LVIS
        image |= {"neg_category_ids": [1, 2, 3], "not_exhaustive_category_ids": [4]}
    for entry in content["categories"]:
        entry["frequency"] = "f"
    (tmp_path / "x.json").write_text(json.dumps(content))
    rows = []
    for i, (_, boxes) in enumerate(scenes, 1):
        found = [near(box, rng) for box in boxes for _ in range(rng.randrange(3))]
        found = [box._replace(score=n / 10) for n, box in enumerate(found)]  # ties between images, not within one
        edges = [*(n / 10 for n in range(11)), *(rng.random() for _ in found)]  # of the bins, and values within
        other = [
            box._replace(score=score)
            for box, score in zip(found, random.Random(i).sample(edges, len(found)), strict=True)
        ]
        for part, stated in ((found[::2], tuple(other[::2])), (found[1::2], tuple(other[1::2]))):
            rows.append(Row(i, tuple(part), rng.random(), rng.random() < 0.5, tie_key=i * 7 % 13, stated=stated))
    evaluator = kind(str(tmp_path / "x.json"), categories=categories)
    images = [*rows_by_image(rows, evaluator.image_of).values()]
    draws = bootstrap_draws(len(images), 8, seed=1)
    quick = evaluator.resampled(images, draws)
    assert {"mIoU", "valid", *(f"{kind.format}/{name}" for name in ("AP", "AP50", "AP_answer", "ECE"))} <= {*quick}
    for r, draw in enumerate(draws):
        slow = evaluator.scores_of([images[i] for i in draw])
        assert {name: values[r] for name, values in quick.items()} == pytest.approx(
            {name: slow.get(name) for name in quick}, abs=1e-12
        )
    assert len({*quick[f"{kind.format}/AP"]}) > 4


def test_an_evaluation_of_few_images_has_no_intervals(tmp_path: Path) -> None:
    evaluator = AccuracyEvaluator()
    for count in (MIN_IMAGES - 1, MIN_IMAGES):
        images = rows_by_image(named([0.5] * count, 0), evaluator.image_of)
        write_resampled("A", images, evaluator.resampled, tmp_path)
        assert (tmp_path / "resampled_A.json").exists() == (count == MIN_IMAGES)


class Fragile(AccuracyEvaluator):
    """Needs a rose."""

    def scores(self, rows: list[Named]) -> dict[str, float]:
        roses = [row for row in rows if row.named == "rose"]
        return {"share": len(rows) / len(roses)}


def test_an_evaluator_that_needs_all_images_ends_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluator = Fragile()
    rows = [Named("rose", "rose", True), *[Named("lily", "lily", True)] * 9]
    write_resampled("Fragile", rows_by_image(rows, evaluator.image_of), evaluator.resampled, tmp_path)
    assert not [*tmp_path.iterdir()]
