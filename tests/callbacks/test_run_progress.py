"""How far a run is: the file that `fit` keeps up to date."""

from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import Mock

from vrft.callbacks.checkpoint import RunCheckpoint
from vrft.callbacks.run_progress import RunProgress
from vrft.callbacks.summary import Summary
from vrft.training.module import VisionModule
from vrft.training.trainer import VisionTrainer


def test_an_exception_is_noted_unless_the_run_was_refused_at_its_start(tmp_path: Path) -> None:
    run = tmp_path / "run"
    state = {"max_steps": 9, "max_epochs": -1, "stopped": None, "callbacks": [Summary()]}
    state["checkpoint_callbacks"] = [RunCheckpoint()]
    trainer = Mock(spec=VisionTrainer, is_global_zero=True, default_root_dir=run, global_step=0, **state)
    module, progress = Mock(spec=VisionModule, steps_done=0), RunProgress()
    progress.on_exception(trainer, module, ValueError("bad data"))
    assert not run.exists()
    progress.on_train_start(trainer, module)
    before = json.loads((run / "progress.json").read_text())
    assert (before["doing"], before["step"], before["max_steps"]) == ("training", 0, 9)
    assert before["seconds_to_go"] is None  # no step is done
    trainer.global_step, module.steps_done = 3, 3
    progress.on_exception(trainer, module, MemoryError("secret"))
    after = json.loads((run / "progress.json").read_text())
    assert (after["doing"], after["reason"], after["step"]) == ("failed", "MemoryError", 3)
    assert after["seconds_to_go"] >= 0
    trainer.stopped = "SIGTERM after step 3, which is saved"
    progress.on_train_end(trainer, module)
    assert json.loads((run / "progress.json").read_text())["doing"] == "stopped"
