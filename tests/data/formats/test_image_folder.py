"""Image folders, CSV files and digits."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers import formats
from tests.helpers.coco import coco
from tests.helpers.data import said_of, samples_of
from vrft.data import CocoData, CsvData, DigitsData, ImageFolderData
from vrft.errors import ConfigurationError


def test_a_csv_names_images_and_labels(tmp_path: Path) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    file = tmp_path / "x.csv"
    file.write_text('image,label\na.png,"no, really"\na.png,\n,cat\n')
    with pytest.raises(ConfigurationError, match=r"x\.csv: line 3: expected an image and a label"):
        samples_of(CsvData(str(file), str(file)), tmp_path)
    train, _ = samples_of(CsvData(str(file), str(file), on_bad_record="skip"), tmp_path)
    assert [(sample.target, sample.size) for sample in train] == [("no, really", (30, 20))]
    with pytest.raises(ConfigurationError, match="no column 'species'; it has image, label"):
        samples_of(CsvData(str(file), str(file), label_column="species"), tmp_path)


def test_missing_folder_is_named_at_once(tmp_path: Path) -> None:
    file = str(coco(tmp_path))
    with pytest.raises(ConfigurationError, match=r"data\.val_images"):
        CocoData(file, str(tmp_path), file, str(tmp_path / "none"))
    with pytest.raises(ConfigurationError, match=r"data\.root"):
        ImageFolderData(str(tmp_path))


def test_an_image_has_one_line_in_a_table(tmp_path: Path) -> None:
    picture = formats.scenes("train", 1)[0][0]
    (tmp_path / "x.csv").write_text("image,label\na.png,cat\nb.png,dog\na.png,dog\n")
    for name in "ab":
        formats.save(picture, tmp_path / f"{name}.png")
    said = said_of(lambda **more: CsvData(str(tmp_path / "x.csv"), val_fraction=0.5, **more), tmp_path)
    assert said == f"{tmp_path / 'x.csv'}: line 4: a.png is also in line 2\n"


def test_digits_name_the_package_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ConfigurationError, match=r"DigitsData needs `pip install 'scikit-learn>=1\.4'`"):
        DigitsData(root=str(tmp_path / "digits")).prepare_data()


def test_digits_become_an_image_folder(tmp_path: Path) -> None:
    data = DigitsData(root=str(tmp_path / "digits"), shots=None)
    data.prepare_data()
    _, samples = samples_of(data, tmp_path, stage="validate")
    assert len(samples) == 600
    assert len(list((tmp_path / "digits" / "train").glob("*/*.png"))) == 1197
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    data.prepare_data()
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    assert samples[0].size == (56, 56)
    assert samples[0].target == "eight"  # folders are sorted by name
