"""Loggers alone and together show the same run, and every metric is documented."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import lightning.fabric.loggers.tensorboard
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.helpers import CSV_ONLY, ROOT, Command
from tests.helpers.answers import scored_rollout
from tests.helpers.finished import Finished
from tests.helpers.wandb_files import history, records, wait_for_end
from vrft.__main__ import main
from vrft.callbacks.rollout_pictures import group_picture
from vrft.callbacks.transcripts import transcript_row
from vrft.evaluators import (
    AccuracyEvaluator,
    BoxSegmenter,
    GroundingEvaluator,
    PresenceEvaluator,
    accuracy,
    grounding,
    presence,
)
from vrft.evaluators.average_precision import COCO_NUMBERS, LVIS_NUMBERS
from vrft.guards import GUARDS
from vrft.types import Answer, Detection, Sample
from vrft.utils.drawing import PREDICTION, TRUTH

DOCS = (ROOT / "docs" / "dashboards.md").read_text()
SMALL = ["--transcripts.every_n_rollouts=1", "--data.batch_size=2", "--model.num_generations=4"]


def fragment(name: str) -> list[str]:
    return ["--config", f"logger/{name}", *SMALL]


def csv_names(run: Path) -> set[str]:
    with (run / "logs" / "version_0" / "metrics.csv").open() as file:
        return {name for name in csv.DictReader(file).fieldnames or () if "/" in name}


def tensorboard(run: Path) -> EventAccumulator:
    events = EventAccumulator(str(run / "tensorboard" / "version_0"), size_guidance={"scalars": 0, "images": 0})
    return events.Reload()


def documented() -> set[str]:
    """Return the names in the documentation's table of metrics."""
    table = DOCS.split("## Metrics")[1].split("## Guards")[0]
    cells = [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| `")]
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def test_all_loggers_together(finished: Finished) -> None:
    run = finished.folder / "run"
    names = csv_names(run)
    events = tensorboard(run)
    assert {*events.Tags()["scalars"]} - {"epoch", "hp_metric"} == names
    assert events.Tags()["images"] == ["val/coco/precision_recall", *(f"rollouts/{n}" for n in range(4))]
    assert [image.step for image in events.Images("rollouts/0")] == [0, 1, 2]
    assert "val/coco/per_category/text_summary" in events.Tags()["tensors"]
    (file,) = (run / "wandb").glob("offline-run-*/*.wandb")
    wait_for_end(file)
    logged = history(file)
    assert names <= {name for entry in logged for name in entry}
    steps = {step["trainer/global_step"] for step in logged if "train/reward" in step or "val/reward" in step}
    assert steps == {0, 1, 2, 3}  # the last evaluation follows all rollouts
    assert all("trainer/global_step" in entry for entry in logged)
    summary = [record.metric for record in records(file) if record.WhichOneof("record_type") == "metric"]
    best = {metric.name for metric in summary if metric.summary.max and metric.summary.last}
    assert best == {name for name in names if name.startswith("val/")}
    (config,) = [record.config for record in records(file) if record.WhichOneof("record_type") == "config"]
    settings = {update.key: update.value_json for update in config.update}
    assert json.loads(settings["model"])["class_path"] == "vrft.RFT"


@pytest.mark.parametrize("name", ["tensorboard", "csv"])
def test_a_logger_alone(name: str, quick_fit: Command, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main([*quick_fit(), *fragment(name), "--trainer.limit_val_batches=0"]) == 0
    assert "train/reward" in csv_names(run)
    assert not (run / "wandb").exists()
    assert (run / "tensorboard").exists() == (name == "tensorboard")
    if name == "tensorboard":
        assert "rollouts/0" in tensorboard(run).Tags()["images"]


def test_a_missing_tensorboard_is_an_error_of_one_line(
    quick_fit: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("_TENSORBOARD_AVAILABLE", "_TENSORBOARDX_AVAILABLE"):
        monkeypatch.setattr(lightning.fabric.loggers.tensorboard, name, False)
    assert main([*quick_fit(), *fragment("tensorboard")]) == 2
    assert "trainer.logger: TensorBoardLogger needs `pip install tensorboard`" in capsys.readouterr().err


RUNS = {
    "quickstart": [
        *("--model.num_minibatches=2", "--model.max_extra_rollouts=1", "--model.sft_weight=0.1"),
        "--model.difficulty={reward: iou}",
    ],
    "quickstart_sft": [],
}
NOT_HERE = {"memory/gpu_gb", "guards/NAME", "train/staleness", "train/sampling_gap_max", "train/entropy_weight"}
NOT_HERE |= {"train/loss_scale", "train/overflowed_steps", "train/self_preference_gap"}
NOT_HERE |= {f"train/importance/{name}" for name in ("ratio_p01", "ratio_p50", "ratio_p99", "beyond")}
"""Metrics that need a GPU, float16, SelfPreference, a setting of the entropy, a raised guard or rollout servers."""


def evaluated() -> set[str]:
    """Return the names of the scores that evaluators log."""
    box = (0.0, 0.0, 1.0, 1.0)
    names = {
        *GroundingEvaluator(BoxSegmenter()).scores([grounding.Row(1, "cat", box, 1.0, True, 1, 1)]),
        *AccuracyEvaluator().scores([accuracy.Row("cat", "cat", True)]),
        *PresenceEvaluator().scores([presence.Row(1, ("cat",), ("cat",), True)]),
        *(f"coco/{name}" for name in COCO_NUMBERS),
        *(f"lvis/{name}" for name in (*LVIS_NUMBERS, "AP_answer", "AP_logprob", "ECE")),
    }
    return {f"val/{name}" for name in names}


def test_every_metric_is_in_the_table_and_every_line_is_a_metric(quick_fit: Command, tmp_path: Path) -> None:
    seen = evaluated() | NOT_HERE
    for name, more in RUNS.items():
        command = ["fit", "--config", name, *quick_fit(CSV_ONLY, *more)[3:]]
        assert main([*command, f"--run_dir={tmp_path}/{name}", "--data.batch_size=2"]) == 0
        seen |= csv_names(tmp_path / name)
    assert {re.sub("/reward/.*", "/reward/NAME", name) for name in seen} == documented()


def test_every_guard_is_in_the_table() -> None:
    table = DOCS.split("## Guards")[1]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == [guard.name for guard in GUARDS]


def test_a_group_is_drawn_with_true_and_predicted_boxes() -> None:
    sample = Sample(0, (Image.new("RGB", (40, 20)),), 1, "cat", (Detection((4, 4, 36, 16), "cat"),))
    answers = [
        Answer("", "", (Detection((0, 0, 40, 20), "cat\n" * 99, 0.5),), True),
        Answer("", "", None, False),
    ]
    one = torch.ones(2)
    scored = scored_rollout(sample, answers, {"iou": one}, one[None], one[None])
    picture = group_picture(scored, [transcript_row(scored, 1, n) for n in range(2)], 0)
    half = picture.width // 2
    first, second = (picture.crop((x, 0, x + half, picture.height)) for x in (0, half))
    for tile, colours in ((first, {TRUTH, PREDICTION}), (second, {TRUTH})):
        found = {colour for _, colour in tile.getcolors(1 << 20) or ()}
        assert found & {TRUTH, PREDICTION} == colours
    assert first.size == second.size == (320 + 6, 160 + 2 * 14 + 4 + 6)  # enlarged, two lines of text, a gap
