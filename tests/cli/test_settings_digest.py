"""The digest of the settings decides whether earlier answers and scores are reused."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from vrft.cli.settings_digest import settings_digest

CONFIG: dict[str, Any] = {
    "model": {
        "class_path": "vrft.RFT",
        "init_args": {
            "policy": {"checkpoint": "some/model", "min_pixels": None, "quantize": None, "lora": {"adapter": None}},
            "rewards": {
                "mine": {"class_path": "FunctionReward", "init_args": {"function": "own_rewards.first"}},
                "judge": {"class_path": "Judge", "init_args": {"url": "http://a", "request": {"top_p": 1}}},
            },
            "engine": None,
            "max_tokens_per_micro_batch": 1,
        },
    },
    "task": {"class_path": "DetectionTask", "init_args": {"system": None}},
    "data": {"class_path": "CocoData", "init_args": {"image_bits": None, "examples": 0, "eval_batch_size": 1}},
    "trainer": {"precision": None, "devices": 1},
    "seed_everything": 0,
    "run_dir": "runs/a",
}


def digest(path: str = "run_dir", value: Any = None) -> str:
    config = copy.deepcopy(CONFIG)
    *folders, name = path.replace("~", "init_args").split(".")
    settings = config
    for folder in folders:
        settings = settings[folder]
    settings[name] = value
    parser: Any = SimpleNamespace(dump=lambda config, skip_none: yaml.safe_dump(config))
    return settings_digest(parser, config)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("path", "value", "reused"),
    [
        ("model.~.rewards.mine.~.function", "own_rewards.second", False),
        ("model.~.rewards.judge.~.url", "http://b", False),
        ("model.~.rewards.judge.~.request", {"top_p": 0.5}, False),
        ("model.~.policy.min_pixels", 784, False),
        ("model.~.policy.quantize", "nf4", False),
        ("model.~.policy.lora", {"adapter": "some/adapter"}, False),
        ("model.~.engine", {"class_path": "VLLMServer"}, False),
        ("task.~.system", "Be brief.", False),
        ("data.~.image_bits", 12, False),
        ("data.~.examples", 2, False),
        ("data", {"class_path": "my_module.MyData"}, False),
        ("trainer.precision", "bf16-true", False),
        ("seed_everything", 1, False),
        ("model.~.max_tokens_per_micro_batch", 2, True),
        ("data.~.eval_batch_size", 2, True),
        ("trainer.devices", 2, True),
        ("run_dir", "runs/b", True),
    ],
)
def test_settings_that_change_answers_or_scores_change_the_digest(path: str, value: Any, reused: bool) -> None:
    assert (digest(path, value) == digest()) == reused


def test_an_edited_module_of_the_user_changes_the_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "own_rewards.py"
    file.write_text("one")
    monkeypatch.setitem(sys.modules, "own_rewards", SimpleNamespace(__file__=str(file)))  # type: ignore[arg-type]
    before = digest()
    assert digest() == before
    file.write_text("two")
    assert digest() != before
