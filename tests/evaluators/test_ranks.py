"""Held-out numbers are equal on any number of processes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.helpers import CSV_ONLY
from tests.helpers.ranks import Ranks
from vrft.__main__ import main
from vrft.evaluators.base import gather
from vrft.evaluators.coco import Row
from vrft.types import Detection


@pytest.fixture
def four_ranks(tmp_path: Path) -> Iterator[Ranks]:
    ranks = Ranks(tmp_path, 4)
    yield ranks
    ranks.stop()


def evaluate(tmp_path: Path, tiny_scenes: list[str], ranks: Ranks | None) -> tuple[dict[str, object], list[str]]:
    """Run `validate` on some ranks; return the evaluation's metadata, and its files of results and answers."""
    count = ranks.count if ranks else 1
    config = "--config=quickstart"
    command = ["validate", config, *tiny_scenes, "--data.val_size=7", CSV_ONLY, "--data.eval_batch_size=4"]
    command += [f"--run_dir={tmp_path}/of-{count}", "--trainer.enable_progress_bar=false"]
    command += ["--trainer.accelerator=cpu", f"--trainer.devices={count}"]
    if ranks:
        # Lightning would warn of values that are not synchronised
        assert "sync_dist" not in ranks.run([*command, "--trainer.strategy=ddp"])
    else:
        assert main(command) == 0
    folder = tmp_path / f"of-{count}" / "evaluation" / "val-0"
    about = json.loads((folder / "coco.meta.json").read_text())
    return about, [(folder / name).read_text() for name in ("detections_val_vrft_results.json", "answers.jsonl")]


def test_one_two_and_four_processes_measure_the_same(
    tmp_path: Path, tiny_scenes: list[str], two_ranks: Ranks, four_ranks: Ranks
) -> None:
    alone, files = evaluate(tmp_path, tiny_scenes, None)
    content = json.loads((tmp_path / "val.json").read_text())
    asked = sorted({(entry["image_id"], entry["category_id"]) for entry in content["annotations"]})
    assert alone["prompts"] == len(asked)
    assert len(files[1].splitlines()) == len(asked)
    assert len(asked) % 2 == 1  # odd, so that a sample is repeated
    each = -(-len(asked) // 4)
    assert any(asked[start - 1][0] == asked[start][0] for start in range(each, len(asked), each))  # split over ranks
    assert alone["numbers"]["AP"] > 0  # type: ignore[index]
    for ranks in (two_ranks, four_ranks):
        several, (results, answers) = evaluate(tmp_path, tiny_scenes, ranks)
        assert several == alone
        assert answers == files[1]
        for found, expected in zip(json.loads(results), json.loads(files[0]), strict=True):
            # token probabilities have rounding errors that depend on the batch
            assert found | {"score": 0} == expected | {"score": 0}
            assert found["score"] == pytest.approx(expected["score"], rel=1e-5)


CASES = [
    ([[0, 1], []], {"0": 0.0, "1": 0.0}),
    ([[], [5]], {"5": 0.25}),
    ([[], []], {}),
    ([[0, 1], [1, 2]], {"0": 0.0, "1": 0.0, "2": 0.25}),  # a sample repeated to fill a shard belongs to another rank
]


def gather_on(rank: int, folder: str) -> None:
    """Gather the rows of each case on one of two processes, and write the result."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    found = []
    for shares, _ in CASES:
        rows = {i: Row(i, (Detection((0, 0, 1, 1), "cat", rank / 4),), 0.5, True) for i in shares[rank]}
        found.append({str(index): row.detections[0].score for index, row in gather(rows, len(shares)).items()})
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def gathered(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, float]]]:
    """Return the gathered rows of each rank for each case."""
    folder = tmp_path_factory.mktemp("gathered")
    mp.start_processes(gather_on, (str(folder),), 2, start_method="forkserver")
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("case", range(len(CASES)), ids=["none-on-the-second", "none-on-the-first", "none", "twice"])
def test_ranks_without_rows_take_part_in_the_gather(case: int, gathered: list[list[dict[str, float]]]) -> None:
    for found in gathered:
        assert found[case] == CASES[case][1]
