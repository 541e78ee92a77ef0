"""Settings that no run can mean are refused by field."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch.cli import OptimizerCallable

from tests.helpers import Command
from vrft.__main__ import main
from vrft.cli.config_parser import ConfigParser, harden_parsing
from vrft.data import VisionData
from vrft.errors import ConfigurationError
from vrft.rewards import Reward
from vrft.training.module import VisionModule


def parse(kind: type, name: str, **settings: object) -> object:
    harden_parsing()
    parser = ConfigParser(exit_on_error=False)
    parser.add_subclass_arguments(kind, "it")
    return parser.parse_object({"it": {"class_path": name, "init_args": settings}}).it.init_args


IOU = (Reward, "vrft.rewards.DetectionIoU")
RFT = (VisionModule, "vrft.RFT")
SCENES = (VisionData, "vrft.data.SceneData")
CASES = [
    (IOU, "weight", [".nan", ".inf", "heavy", True], [0.5, -1, 2, "0.5"]),
    (IOU, "threshold", [5, 1.01, -0.1, ".nan"], [0, 0.5, 1]),
    (RFT, "beta", [".nan", ".inf", -0.1], [0, 0.04, 1e-3]),
    (RFT, "temperature", [".inf", ".nan", -1], [0.7, 1]),
    (RFT, "top_p", [1.5, ".nan"], [0.9]),
    (RFT, "epsilon_high", [".nan", ".inf"], [None, 0.28]),
    (RFT, "max_grad_norm", [".nan", -1], [1.0]),
    (SCENES, "seed", [-1, 2**32, 0.5, ".nan"], [0, 7, 2**32 - 1]),
]


@pytest.mark.parametrize(("place", "field", "wrong", "right"), CASES, ids=[f"{case[1]}" for case in CASES])
def test_a_number_has_the_bounds_of_its_field(
    place: tuple[type, str], field: str, wrong: list[object], right: list[object]
) -> None:
    more = {"task": "vrft.tasks.DetectionTask", "policy": {"checkpoint": "x"}, "rewards": {}} if place is RFT else {}
    for value in right:
        parsed = parse(*place, **more, **{field: value})[field]  # type: ignore[index]
        assert parsed == (float(value) if isinstance(value, str) else value)
        assert type(parsed) in (int, float, type(None))  # checkpoints hold nothing else
    for value in wrong:
        number = float(value.replace(".", "")) if isinstance(value, str) and value.startswith(".") else value
        with pytest.raises(ConfigurationError, match=rf"{field}: .*expected a (whole |finite )?number"):
            parse(*place, **more, **{field: number})


def test_a_learning_rate_is_finite() -> None:
    harden_parsing()
    parser = ConfigParser(exit_on_error=False)
    parser.add_argument("--optimizer", type=OptimizerCallable)
    settings = "--optimizer={{class_path: torch.optim.SGD, init_args: {{lr: {}}}}}"
    for wrong in (".nan", ".inf"):
        with pytest.raises(ConfigurationError, match=r"lr: .*expected a finite number"):
            parser.parse_args([settings.format(wrong)])
    made = parser.instantiate(parser.parse_args([settings.format("1e-3")])).optimizer([torch.zeros(1)])
    assert made.param_groups[0]["lr"] == 1e-3


def test_a_negative_seed_is_refused(quick_fit: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(quick_fit("--seed_everything=-1", "--data.seed=1")) == 2
    assert "seed_everything: expected a whole number from 0 to 4294967295, got -1" in capsys.readouterr().err
