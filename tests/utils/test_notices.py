"""Notices: what a run assumes about its data, said in the console and kept for the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.data.formats.test_yolo_exports import roboflow
from tests.helpers import CSV_ONLY
from vrft.__main__ import main
from vrft.report import read_run
from vrft.run_dir import RunDir
from vrft.utils import notices


def test_notices_are_kept_once_and_written_as_soon_as_there_is_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "data_notices.json"
    notices.keep("of no command")
    with notices.keeping_notices() as found:
        with pytest.warns(UserWarning, match="one"):
            notices.warn("one")
        notices.keep("one")
        assert not path.exists()
        found.write_to(path)
        notices.keep("two")
    notices.keep("of no command")
    assert json.loads(path.read_text()) == ["one", "two"]
    with notices.keeping_notices() as found:
        found.write_to(path)
    assert not path.exists()


@pytest.mark.slow(seconds=6)
def test_the_report_has_what_a_run_assumed_about_its_data(tmp_path: Path) -> None:
    config = roboflow(tmp_path / "x")  # train: ../train/images, beside train/
    picture = tmp_path / "x" / "train" / "images" / "train0.png"
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down, which no size tells
    with Image.open(picture) as image:
        image.save(picture, exif=exif)
    command = ["fit", "--config", "quickstart", "--data=YoloData", f"--data.config={config}", CSV_ONLY]
    command += [f"--run_dir={tmp_path}/run", "--trainer.max_steps=1", "--model.num_generations=2"]
    command += ["--data.batch_size=1", "--model.max_completion_length=2", "--trainer.enable_progress_bar=false"]
    with pytest.warns(UserWarning, match="is read instead"):
        assert main(command) == 0
    said = [found["text"] for found in read_run(RunDir(tmp_path / "run"), [])["warnings"] if found["kind"] == "data"]
    parts = ("train: '../train/images' does not exist", "1 image with an Exif orientation")
    for part in parts:
        assert [text for text in said if part in text], part
    assert len({*said}) == len(said)
