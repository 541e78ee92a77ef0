"""Printed scores: the last lines of `fit` say whether training has improved on the base."""

from __future__ import annotations

from pathlib import Path

import pytest

from vrft.cli.fit import print_best
from vrft.cli.trainer import show_scores
from vrft.run_dir import RunDir


@pytest.mark.parametrize(
    ("metric", "base", "falls", "said"),
    [
        ("val/coco/AP", {"mAP": 0.0038}, False, "the base scored higher (0.0038) than every checkpoint"),
        ("val/coco/AP", {"mAP": 0.0}, False, None),
        ("val/coco/ECE", {"calibration error": 0.0001}, True, "the base scored lower (0.00010) than every checkpoint"),
        ("val/of_my_own", {"mAP": 0.5}, False, None),
    ],
)
def test_a_base_that_scored_better_is_named(
    metric: str,
    base: dict[str, float],
    falls: bool,
    said: str | None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    last = tmp_path / "last.ckpt"
    last.touch()
    best = {"checkpoint": str(last), "metric": metric, "score": 0.0005}
    print_best(RunDir(tmp_path), best, last, base, falls=falls)
    first, *others = capsys.readouterr().out.splitlines()
    assert first.startswith(f"best by {metric}: {last} (0.0005")
    assert others == ([said] if said else [])


def test_small_scores_have_more_decimals(capsys: pytest.CaptureFixture[str]) -> None:
    show_scores([{"val/mIoU": 0.41251, "val/coco/AP": 0.0007563256076537073, "val/valid": 0.0}])
    rows = [[cell.strip() for cell in line.split("│")[1:3]] for line in capsys.readouterr().out.splitlines()]
    assert rows[3:6] == [["val/coco/AP", "0.00076"], ["val/mIoU", "0.413"], ["val/valid", "0.000"]]
