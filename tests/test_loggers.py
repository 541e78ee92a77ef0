from __future__ import annotations

import json
import time
from pathlib import Path

import psutil
import pytest
import torch
from PIL import Image

from tests.helpers.answers import scored_rollout
from vrft.callbacks.rollout_pictures import log_table, overlays
from vrft.callbacks.transcripts import transcript_row
from vrft.loggers import WandbLogger, run_id
from vrft.types import Answer, Detection, Sample, ScoredRollout


def scored() -> ScoredRollout:
    sample = Sample(3, (Image.new("RGB", (40, 20)),), 11, "cat", (Detection((1, 2, 3, 4), "cat"),))
    answers = [
        Answer("<think>x</think><answer>…</answer>", "x", (Detection((0, 0, 40, 20), "cat", 0.5),), True),
        Answer("<script>", "", None, False),
    ]
    rewards = {"iou": torch.tensor([0.5, 0.0]), "optional": torch.tensor([1.0, float("nan")])}
    return scored_rollout(sample, answers, rewards, torch.tensor([[1.5, 0.0]]), torch.tensor([[0.7, -0.7]]))


@pytest.mark.slow
@pytest.mark.usefixtures("_new_wandb")
def test_without_a_key_a_run_is_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # without ~/.netrc
    logger = WandbLogger(str(tmp_path / "run"), offline=False)
    with pytest.warns(UserWarning, match="logs offline"):
        logger.log_metrics({"train/reward": 1.0}, step=0)
    said = logger.finish()
    (folder,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    assert said == f"Weights & Biases: offline in {folder}; `wandb sync {folder}` uploads it"
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))


@pytest.mark.slow(seconds=7)
@pytest.mark.usefixtures("_new_wandb")
def test_with_an_unreachable_server_a_run_is_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # a closed port
    logger = WandbLogger(str(tmp_path / "run"), offline=False, init_timeout=2)
    with pytest.warns(UserWarning, match="logs offline"):
        logger.log_metrics({"train/reward": 1.0}, step=0)
    logger.finish()
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))


def test_a_resumed_run_keeps_its_id(tmp_path: Path) -> None:
    assert run_id(tmp_path) == run_id(tmp_path)
    assert run_id(tmp_path) != run_id(tmp_path / "other")


def test_table_of_completions_with_boxes(tmp_path: Path) -> None:
    logger = WandbLogger(str(tmp_path / "run"))
    rollout = scored()
    log_table(logger, rollout, [transcript_row(rollout, 1, n) for n in range(2)], step=0)
    logger.finish()
    tables = list((tmp_path / "run" / "wandb").rglob("*.table.json"))
    content = json.loads(tables[0].read_text())
    assert content["columns"] == [
        *("step", "rollout", "image", "query", "reasoning", "completion", "iou", "optional", "reward", "advantage"),
    ]
    assert len(content["data"]) == 2
    assert content["data"][1][7] is None  # a reward that does not apply


def test_overlays_are_true_and_predicted_boxes() -> None:
    import wandb  # here, so that only a worker with this test imports it

    rollout = scored()
    boxes = overlays(rollout.samples[0], rollout.answers[0])._boxes
    assert boxes["truth"]._val[0]["position"] == {"minX": 1, "maxX": 3, "minY": 2, "maxY": 4}
    assert boxes["prediction"]._val[0]["scores"] == {"confidence": 0.5}
    assert set(overlays(rollout.samples[0], rollout.answers[1])._boxes) == {"truth"}
    assert isinstance(overlays(rollout.samples[0], rollout.answers[1]), wandb.Image)


def test_transcript_rows_are_plain_json() -> None:
    entry = json.loads(json.dumps(transcript_row(scored(), 5, 1), allow_nan=False))
    assert entry["rewards"] == {"iou": 0.0, "optional": None}
    assert (entry["rollout"], entry["generation"], entry["valid"], entry["answer"]) == (5, 1, False, None)
    assert entry["target"] == [[[1, 2, 3, 4], "cat", 1.0]]


def log_until_restarted(logger: WandbLogger) -> None:
    """Log until the lost connection is noticed, or for a minute."""
    first, end = logger.run, time.monotonic() + 60
    while logger.run is first and time.monotonic() < end:
        logger.log_metrics({"train/reward": 2.0}, step=1)
        time.sleep(0.05)


@pytest.mark.slow
def test_a_dead_service_is_restarted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    logger = WandbLogger(str(tmp_path / "run"))
    logger.log_metrics({"train/reward": 1.0}, step=0)
    services = [child for child in psutil.Process().children() if child.name() == "wandb-core"]
    assert services
    for service in services:
        service.kill()
    with pytest.warns(UserWarning, match="restarting its service"):
        log_until_restarted(logger)
    logger.log_metrics({"train/reward": 3.0}, step=2)
    logger.finish()
    runs = [path.parent.name for path in (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")]
    assert len(runs) == 2
    assert all(run_id(tmp_path / "run") in name for name in runs)
