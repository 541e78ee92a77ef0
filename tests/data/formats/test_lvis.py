"""LVIS files in their published format."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.helpers import formats
from tests.helpers.data import drawn, samples_of
from vrft.data import (
    CocoData,
)


def test_lvis_files_name_images_by_address(tmp_path: Path) -> None:
    folder = formats.write_lvis(tmp_path / "x")
    files = [str(folder / name) for name in ("lvis_train.json", "train2017", "lvis_val.json", "val2017")]
    train, val = samples_of(CocoData(*files, negatives=1.0), tmp_path)
    for part, start, samples in (("train", 1, train), ("val", 1001, val)):
        for sample in samples:
            true = [box for box in drawn(part)[sample.image_id - start] if box.label == sample.query]
            assert len(sample.target) == len(true)
            assert not true or np.allclose([box.box for box in sample.target], [box.box for box in true])
    assert [sample for sample in train if not sample.target]
    assert not [sample for sample in val if not sample.target]
