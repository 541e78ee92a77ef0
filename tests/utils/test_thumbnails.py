"""Thumbnails: size, reuse and failed writes."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from vrft.utils.thumbnails import MAX_SIDE, save_thumbnail


def test_pictures_are_kept_once_and_small(tmp_path: Path) -> None:
    image = Image.effect_noise((1600, 1200), 80).convert("RGB")
    name = save_thumbnail(image, tmp_path / "pictures")
    assert name is not None
    assert save_thumbnail(image.copy(), tmp_path / "pictures") == name
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == [name]
    with Image.open(tmp_path / "pictures" / name) as kept:
        assert kept.size == (MAX_SIDE, MAX_SIDE * 3 // 4)


def test_a_picture_that_cannot_be_written_causes_only_a_warning(tmp_path: Path) -> None:
    (tmp_path / "pictures").write_text("in the way")
    with pytest.warns(UserWarning, match="images are missing"):
        assert save_thumbnail(Image.new("RGB", (8, 8)), tmp_path / "pictures") is None
