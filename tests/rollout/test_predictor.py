"""`Predictor`: one checkpoint, one image, one question, from Python."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vrft import Predictor
from vrft.__main__ import main
from vrft.data.datasets.scenes import FreshScenes
from vrft.data.images import BadImage
from vrft.errors import ConfigurationError
from vrft.tasks import DetectionTask
from vrft.types import Detection


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor("tiny-detection", DetectionTask("Detect {query}"))


def test_answers_equal_those_of_the_command(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files = [f"{number}.png" for number in range(4)]
    for number, file in enumerate(files):
        FreshScenes(4, 0, seed=0)[number].image.resize((112, 84)).save(file)
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.logger=false", "--run_dir=run"]
    assert main(["predict", "--config", "quickstart", *quiet, "--images", *files, "--query", "red", "blue"]) == 0
    rows = [json.loads(line) for line in Path("run/predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 8
    boxes = 0
    for row in rows:
        answer = predictor(row["file"], row["query"])
        assert answer.text == row["completion"]
        assert answer.valid == row["valid"]
        for detection in answer.value or ():
            assert isinstance(detection, Detection)
            x0, y0, x1, y1 = detection.box
            assert 0 <= x0 < x1 <= 112
            assert 0 <= y0 < y1 <= 84
            boxes += 1
    assert boxes > 0


def test_an_open_image_gets_the_same_answer_as_its_file(predictor: Predictor, tmp_path: Path) -> None:
    picture = FreshScenes(4, 0, seed=0)[0].image
    picture.save(tmp_path / "scene.png")
    assert predictor(picture, "red") == predictor(tmp_path / "scene.png", "red")


def test_a_guessed_depth_is_reported_and_a_stated_one_is_used(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grey = np.full((56, 56), 4000, np.uint16)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    with pytest.warns(UserWarning, match=r"grey\.png has more than 8 bits.*Predictor\(image_bits=12\)") as said:
        predictor(tmp_path / "grey.png", "red")
    assert said[0].filename == __file__
    monkeypatch.setattr(predictor, "image_bits", 16)
    seen: list[Image.Image] = []
    monkeypatch.setattr(predictor, "encoder", lambda samples: [seen.append(samples[0].image), 1 / 0])
    with pytest.raises(ZeroDivisionError):
        predictor(tmp_path / "grey.png", "red")
    assert seen[0].getpixel((0, 0)) == (4000 // 256,) * 3


def test_an_image_of_another_mode_than_rgb_is_refused(predictor: Predictor) -> None:
    with pytest.raises(BadImage, match="expected an image in RGB, got mode I;16"):
        predictor(Image.new("I;16", (56, 56)), "red")


@pytest.mark.parametrize("bits", [8, 33])
def test_image_bits_outside_9_to_32_are_refused_before_loading(bits: int) -> None:
    with pytest.raises(ConfigurationError, match=f"image_bits: expected a number from 9 to 32, got {bits}"):
        Predictor("tiny-detection", DetectionTask(), image_bits=bits)


def test_a_file_that_is_not_an_image_is_an_error(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("no image")
    with pytest.raises(BadImage, match="not a readable image"):
        predictor(tmp_path / "notes.png", "red")
    assert predictor(Image.new("RGB", (56, 56)), "red").text  # the predictor remains usable
