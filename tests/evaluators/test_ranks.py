"""Held-out numbers are the same on any number of processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.helpers import CSV_ONLY, ROOT
from vrft.evaluators.base import gather
from vrft.evaluators.coco import Row
from vrft.types import Detection


def evaluate(tmp_path: Path, tiny_scenes: list[str], ranks: int) -> tuple[dict[str, object], list[str]]:
    """What `validate` measures on so many processes, and the files that it writes: results and answers."""
    config = str(ROOT / "configs" / "quickstart.yaml")
    command = [
        sys.executable,
        "-m",
        "vrft",
        "validate",
        "--config",
        config,
        *tiny_scenes,
        "--data.val_size=7",
        CSV_ONLY,
    ]
    command += ["--data.eval_batch_size=4", f"--run_dir={tmp_path}/{ranks}", "--trainer.enable_progress_bar=false"]
    command += ["--trainer.accelerator=cpu", f"--trainer.devices={ranks}", "--trainer.strategy=ddp"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "sync_dist" not in done.stderr  # values are those of all ranks
    folder = tmp_path / str(ranks) / "evaluation" / "val-0"
    about = json.loads((folder / "coco.meta.json").read_text())
    return about, [(folder / name).read_text() for name in ("detections_val_vrft_results.json", "answers.jsonl")]


def test_one_two_and_four_processes_measure_the_same_to_the_last_bit(tmp_path: Path, tiny_scenes: list[str]) -> None:
    alone, files = evaluate(tmp_path, tiny_scenes, 1)
    content = json.loads((tmp_path / "val.json").read_text())
    asked = sorted({(entry["image_id"], entry["category_id"]) for entry in content["annotations"]})
    assert alone["prompts"] == len(asked)
    assert len(files[1].splitlines()) == len(asked)
    assert len(asked) % 2 == 1  # so that a sample is taken twice
    each = -(-len(asked) // 4)
    assert any(asked[start - 1][0] == asked[start][0] for start in range(each, len(asked), each))  # on two ranks
    assert alone["numbers"]["AP"] > 0  # type: ignore[index]
    for ranks in (2, 4):
        several, same = evaluate(tmp_path, tiny_scenes, ranks)
        assert several == alone
        assert same == files


def gather_on(rank: int, shares: list[list[int]], folder: str) -> None:
    """On one of several processes: bring together rows with these numbers."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=len(shares))
    rows = {i: Row(i, (Detection((0, 0, 1, 1), "cat", rank / 4),), 0.5, True) for i in shares[rank]}
    found = {str(index): row.detections[0].score for index, row in gather(rows, len(shares)).items()}
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ([[0, 1], []], {"0": 0.0, "1": 0.0}),
        ([[], [5]], {"5": 0.25}),
        ([[], []], {}),
        ([[0, 1], [1, 2]], {"0": 0.0, "1": 0.0, "2": 0.25}),  # what fills up a share is another rank's
    ],
)
def test_ranks_without_rows_gather_as_well(shares: list[list[int]], expected: dict[str, float], tmp_path: Path) -> None:
    mp.spawn(gather_on, (shares, str(tmp_path)), len(shares))
    for rank in range(len(shares)):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == expected
