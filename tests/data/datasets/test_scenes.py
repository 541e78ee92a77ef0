"""Generated scenes and their boxes."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np

from tests.helpers.data import samples_of
from vrft.data import CocoData
from vrft.data.datasets.scenes import draw_scene, write_coco


def test_scenes_are_drawn_where_their_boxes_say(tmp_path: Path) -> None:
    scenes = [draw_scene(random.Random(seed)) for seed in range(20)]
    write_coco(scenes, tmp_path / "x.json", tmp_path / "images")
    data = CocoData(*[str(tmp_path / name) for name in ("x.json", "images")] * 2)
    _, samples = samples_of(data, tmp_path, stage="validate")
    assert sum(len(sample.target) for sample in samples) == sum(len(detections) for _, detections in scenes)
    for sample in samples:
        pixels = np.asarray(sample.image).astype(int)
        coloured = (pixels.max(-1) - pixels.min(-1)) > 40
        inside = np.zeros_like(coloured)
        by_image = [other for other in samples if other.image_id == sample.image_id]
        for other in by_image:
            for (x0, y0, x1, y1), _, _ in other.target:
                inside[int(y0) : int(np.ceil(y1)) + 1, int(x0) : int(np.ceil(x1)) + 1] = True
        assert not (coloured & ~inside).any()
        assert coloured.sum() > 20
