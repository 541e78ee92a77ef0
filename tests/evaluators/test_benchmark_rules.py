"""COCO's and LVIS's numbers of fuzzed files, against pycocotools and against LVIS's rules as plain loops."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.benchmark_rules import (
    CASES,
    Case,
    area_of,
    expected_of,
    fuzzed,
    ids,
    lvis_numbers,
    numbered,
    pycocotools_numbers,
    same,
)
from vrft.__main__ import main
from vrft.evaluators import CocoEvaluator, LvisEvaluator
from vrft.evaluators.average_precision import LVIS_NUMBERS, UNDEFINED, Format
from vrft.types import Answer, Detection, Sample

pytestmark = pytest.mark.slow(seconds=0.2)

BLOCK = 16
"""Seeds per test; a failure names the seed."""


def evaluated(case: Case, folder: Path, capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, float]:
    """Return the numbers of `vrft evaluate`."""
    files = folder / "truth.json", folder / "results.json"
    for path, content in zip(files, case, strict=True):
        path.write_text(json.dumps(content))
    given = ["--annotations", str(files[0]), "--results", str(files[1]), *options, "--json"]
    assert main(["evaluate", *given]) == 0
    numbers: dict[str, float] = json.loads(capsys.readouterr().out)
    return numbers


blocks = pytest.mark.parametrize("first", range(0, CASES, BLOCK))


@blocks
def test_coco(first: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Compare `vrft evaluate` with each backend to pycocotools."""
    for seed in range(first, first + BLOCK):
        truth, results = fuzzed(seed, "coco")
        for backend in ("hotcoco", "pycocotools"):
            found = evaluated((truth, results), tmp_path, capsys, "--format", "coco", "--backend", backend)
            assert found == same(expected_of(seed, "coco")), f"seed {seed}, {backend}"


@blocks
def test_lvis(first: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Compare `vrft evaluate` to the rules in `benchmark_rules`."""
    for seed in range(first, first + BLOCK):
        found = evaluated(fuzzed(seed, "lvis"), tmp_path, capsys, "--format", "lvis")
        assert found == same(expected_of(seed, "lvis")), f"seed {seed}"


def test_the_lvis_reference_equals_cocos_where_the_rules_agree() -> None:
    """Compare both where LVIS's rules are COCO's: all categories annotated exhaustively, few boxes, no crowds."""
    shared = {name: "AR100" if name == "AR" else name for name in LVIS_NUMBERS if name not in ("APr", "APc", "APf")}
    for seed in range(2 * BLOCK):
        truth, results = fuzzed(seed, "lvis")
        images = [
            image | {"neg_category_ids": ids(truth["categories"]), "not_exhaustive_category_ids": []}
            for image in truth["images"]
        ]
        gt = numbered(truth | {"images": images, "annotations": [r | {"iscrowd": 0} for r in truth["annotations"]]})
        coco, lvis = pycocotools_numbers(gt, results[:100]), lvis_numbers(gt, results[:100])
        assert {name: lvis[name] for name in shared} == same({a: coco[b] for a, b in shared.items()}), f"seed {seed}"


def logged(case: Case, format: Format, folder: Path) -> dict[str, float]:
    """Return the numbers that a run logs after one answer per image with these boxes."""
    truth, results = case
    (folder / "truth.json").write_text(json.dumps(truth))
    evaluator = (CocoEvaluator if format == "coco" else LvisEvaluator)(str(folder / "truth.json"))
    picture = Image.new("RGB", (400, 400))
    rows = []
    for index, image in enumerate(truth["images"]):
        boxes = tuple(
            Detection((x, y, x + w, y + h), f"c{result['category_id']}", result["score"])
            for result in results
            if result["image_id"] == image["id"]
            for x, y, w, h in [result["bbox"]]
        )
        rows.append(evaluator.row(Answer("", "", boxes, True), Sample(index, (picture,), image["id"], "", ())))
    return {name: value for name, value in evaluator.scores(rows).items() if name.startswith(format)}


@pytest.mark.filterwarnings("ignore:(coco|lvis). .*(share their score|not asked about)")
@pytest.mark.parametrize("format", ["coco", "lvis"])
def test_a_run_logs_only_defined_numbers(format: Format, tmp_path: Path) -> None:
    """Check that boxes without area are dropped, and undefined numbers are not logged as -1.

    Scores are made unique, since runs and results files order ties differently (`test_ties.py`).
    """
    undefined = 0
    for seed in range(40):
        truth, results = fuzzed(seed, format)
        results = [result | {"score": 0.1 + 0.9 * result["score"] - n * 1e-9} for n, result in enumerate(results)]
        kept = [result for result in results if area_of(result["bbox"])]
        expected = pycocotools_numbers(numbered(truth), kept) if format == "coco" else lvis_numbers(truth, kept)
        defined = {f"{format}/{name}": value for name, value in expected.items() if value != UNDEFINED}
        undefined += len(expected) - len(defined)
        found = logged((truth, results), format, tmp_path)
        found.pop(f"{format}/ECE", None)
        assert found.pop(f"{format}/AP_answer", None) in (found.get(f"{format}/AP"), None)
        assert found == same(defined), f"seed {seed}"
    assert undefined


def test_annotation_zero_counts_with_pycocotools_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(CASES):
        truth, results = fuzzed(seed, "coco")
        if 0 in ids(truth["annotations"]):
            found = evaluated((truth, results), tmp_path, capsys, "--format", "coco", "--backend", "pycocotools")
            assert found == same(expected_of(seed, "coco")), f"seed {seed}"


@pytest.mark.parametrize("flag", ["iscrowd", "ignore"])
def test_flags_that_lvis_files_lack(flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(BLOCK):
        truth, results = fuzzed(seed, "lvis")
        flags = np.random.default_rng(seed).random(len(truth["annotations"])) < 0.2
        rows = [row | {flag: int(on)} for row, on in zip(truth["annotations"], flags, strict=True)]
        case = truth | {"annotations": rows}, results
        assert evaluated(case, tmp_path, capsys, "--format", "lvis") == same(lvis_numbers(*case)), f"seed {seed}"
