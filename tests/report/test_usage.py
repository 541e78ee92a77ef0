"""The program in a model card loads the folder with transformers alone and prints boxes in pixels of the image."""

from __future__ import annotations

import contextlib
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
import yaml
from PIL import Image
from transformers.utils import is_torchvision_available

from vrft import Policy, Predictor
from vrft.boxes import Coordinates
from vrft.cli.export import usage_program
from vrft.data.datasets.scenes import FreshScenes
from vrft.policy.export import export_policy
from vrft.report.model_card import write_card
from vrft.report.usage import usage
from vrft.tasks import ClassificationTask, DetectionTask
from vrft.utils.processors import load_processor

WIDTH, HEIGHT = 140, 60


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export the built-in policy, which answers with boxes, to a folder with a photo that is not square."""
    folder = tmp_path_factory.mktemp("exported")
    policy = Policy("tiny-detection", dtype="float32")
    policy.load(keep_reference=False)
    export_policy(policy, folder, policy.trained_weights(), 64)
    scene = next(scene for scene in FreshScenes(50, 0, 0) if scene.query == "red" and scene.target)
    scene.image.resize((WIDTH, HEIGHT)).save(folder / "photo.jpg", quality=100)
    return folder


def program_of(card: str) -> str:
    found = re.search(r"^(`{3,})python\n(.*?)\n\1$", card, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[2]


def run(program: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Run a program in a folder and return the lines that it printed."""
    monkeypatch.chdir(folder)
    if not is_torchvision_available():  # with which AutoProcessor reads the same folder
        monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", load_processor)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(program, "card", "exec"), {})
    return printed.getvalue().splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("coordinates", ["thousandths", "unit", "pixels"])
def test_the_program_of_a_card_prints_boxes_in_pixels(
    coordinates: Coordinates, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = DetectionTask("Detect {query}")
    settings: dict[str, Any] = {
        "model": {"init_args": {"policy": {"init_args": {"checkpoint": "x"}}, "optimizer": {}}},
        "task": {"class_path": "x"},
        "data": {"class_path": "x"},
        "trainer": {},
    }
    (exported / "config.yaml").write_text(yaml.safe_dump(settings))
    policy = Policy("tiny-detection", coordinates=coordinates)
    program = usage_program(task, policy, exported)
    assert len(program.splitlines()) <= 15
    card = write_card(exported, exported, "Detect {query}", adapter=False, step=0, program=program).read_text()
    assert program_of(card) == program
    answer, *boxes = run(program.replace('"cat"', '"red"'), exported, monkeypatch)
    picture = Image.open(exported / "photo.jpg").convert("RGB")
    predictor = Predictor(str(exported), task)
    expected = predictor(picture, "red")
    assert answer == expected.text
    frame = replace(predictor.encoder, coordinates=coordinates).frame(picture)
    scale = np.tile([1000 / frame.width, 1000 / frame.height], 2)  # the policy answers in thousandths
    assert isinstance(expected.value, tuple)
    assert len(expected.value) > 0
    np.testing.assert_allclose([json.loads(box) for box in boxes], [box.box * scale for box in expected.value])


def test_a_program_asks_in_the_runs_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    template, system = 'Is {query}\'s "dog" in {{a}}\n{width} x {height} ({numbers})?', "Be `brief`; say \\n."
    lines = usage(template, system, "unit", {"numbers": "numbers with 3 decimals"}).splitlines()
    question = next(line for line in lines if line.startswith("question = "))
    found: dict[str, Any] = {"width": 1, "height": 1}
    exec(question, found)
    assert found["question"] == 'Is cat\'s "dog" in {a}\n1 x 1 (numbers with 3 decimals)?'
    assert repr(system) in next(line for line in lines if line.startswith("inputs = "))
    compile("\n".join(lines), "card", "exec")


def test_a_program_without_boxes_prints_the_answer_alone(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = usage_program(ClassificationTask("Classify {query}"), Policy("tiny-detection"), exported)
    assert "import re" not in program
    assert len(run(program, exported, monkeypatch)) == 1
