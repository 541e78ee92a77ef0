from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vrft.data import CocoData, DigitsData, ImageFolderData
from vrft.data.coco import CocoDetection, read_queries
from vrft.data.datamodule import PromptSampler, ResumableLoader
from vrft.data.few_shot import choose_shots
from vrft.data.scenes import draw_scene, write_coco
from vrft.errors import ConfigurationError


def coco(tmp_path: Path, **changes: Any) -> Path:
    """A COCO file with two images; `changes` replace its tables."""
    for name in ("a.png", "b.png"):
        Image.new("RGB", (40, 30)).save(tmp_path / name)
    content = {
        "images": [{"id": i, "file_name": f"{n}.png", "width": 40, "height": 30} for i, n in ((7, "a"), (2**40, "b"))],
        "categories": [{"id": 3, "name": "cat"}, {"id": 9, "name": "dog"}],
        "annotations": [
            {"image_id": 7, "category_id": 9, "bbox": [1, 2, 3, 4], "iscrowd": 0},
            {"image_id": 7, "category_id": 3, "bbox": [10.5, 0, 5, 30]},
            {"image_id": 7, "category_id": 9, "bbox": [20, 20, 5, 5]},
            {"image_id": 2**40, "category_id": 3, "bbox": [0, 0, 40, 30], "iscrowd": 1},
            {"image_id": 2**40, "category_id": 9, "bbox": [0, 0, 0, 5]},
        ],
    }
    file = tmp_path / "instances.json"
    file.write_text(json.dumps(content | changes))
    return file


def test_one_sample_for_each_image_and_category(tmp_path: Path) -> None:
    samples = CocoDetection(read_queries(coco(tmp_path), tmp_path, None))
    assert [(sample.image_id, sample.query, len(sample.target)) for sample in samples] == [(7, "dog", 2), (7, "cat", 1)]
    assert samples[0].target[0].box == (1, 2, 4, 6)  # corners, from x, y, width, height
    assert samples[1].image.size == (40, 30)


def test_categories_select(tmp_path: Path) -> None:
    assert [query.category for query in read_queries(coco(tmp_path), tmp_path, ["cat"])] == ["cat"]


BOX = {"image_id": 7, "category_id": 3, "bbox": [0, 0, 1, 1]}
IMAGE = {"id": 7, "file_name": "a.png", "width": 40, "height": 30}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"annotations": None}, "a list 'annotations'"),
        ({"annotations": [BOX | {"bbox": [0, 0, 1]}]}, "annotations[0].bbox: expected [x, y, width, height]"),
        ({"annotations": [BOX, BOX | {"bbox": [0, 0, "1", 1]}]}, "annotations[1].bbox"),
        ({"annotations": [BOX | {"bbox": [0, 0, float("nan"), 1]}]}, "annotations[0].bbox"),
        ({"annotations": [BOX | {"image_id": 8}]}, "annotations[0].image_id: no image has id 8"),
        ({"annotations": [BOX | {"category_id": 4}]}, "annotations[0].category_id: no category has id 4"),
        ({"annotations": [BOX | {"category_id": True}]}, "annotations[0].category_id: expected int"),
        ({"annotations": []}, "at least one box"),
        ({"images": [IMAGE | {"file_name": "c.png"}], "annotations": [BOX]}, "images[0].file_name: no such image"),
        ({"images": [IMAGE | {"id": "7"}], "annotations": [BOX]}, "images[0].id: expected int, got '7'"),
        ({"images": [IMAGE | {"width": 30, "height": 40}], "annotations": [BOX]}, "30 x 40"),
        ({"images": [IMAGE | {"file_name": "instances.json"}], "annotations": [BOX]}, "not a readable image"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_record_is_named(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_queries(coco(tmp_path, **changes), tmp_path, None)
    assert said in str(caught.value)
    assert "instances.json" in str(caught.value)


def test_an_unknown_category_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"data\.categories: 'bird'.*cat, dog"):
        read_queries(coco(tmp_path), tmp_path, ["bird"])


def test_a_file_that_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ConfigurationError, match="not a JSON file"):
        read_queries(tmp_path / "x.json", tmp_path, None)


def test_missing_folder_is_named_at_once(tmp_path: Path) -> None:
    file = str(coco(tmp_path))
    with pytest.raises(ConfigurationError, match=r"data\.val_images"):
        CocoData(file, str(tmp_path), file, str(tmp_path / "none"))
    with pytest.raises(ConfigurationError, match=r"data\.root"):
        ImageFolderData(str(tmp_path))


def test_shots_are_seeded_nested_and_per_category() -> None:
    items = [(category, i) for i in range(50) for category in "ab"]
    four = choose_shots(items, lambda item: item[0], 4, seed=1)
    assert Counter(category for category, _ in four) == {"a": 4, "b": 4}
    assert four == choose_shots(items, lambda item: item[0], 4, seed=1)
    assert four != choose_shots(items, lambda item: item[0], 4, seed=2)
    assert set(four) < set(choose_shots(items, lambda item: item[0], 5, seed=1))
    with pytest.raises(ConfigurationError, match="at least 51 images of 'a', got 50"):
        choose_shots(items, lambda item: item[0], 51, seed=1)
    with pytest.raises(ConfigurationError, match="at least 1"):
        choose_shots(items, lambda item: item[0], 0, seed=1)


def order(size: int, batch: int, world: int, epoch: int = 0) -> list[list[int]]:
    samplers = [PromptSampler(size, batch, rank, world, seed=3, shuffle=True) for rank in range(world)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    return [list(sampler) for sampler in samplers]


def test_ranks_share_one_permutation() -> None:
    alone = order(20, 4, 1)[0]
    first, second = order(20, 2, 2)
    assert [index for pair in zip(first, second, strict=True) for index in pair] == alone
    assert len(set(alone)) == 20
    assert order(20, 4, 1, epoch=1)[0] != alone


def test_four_images_fill_a_batch_of_eight() -> None:
    assert Counter(order(4, 8, 1)[0]) == {0: 2, 1: 2, 2: 2, 3: 2}
    assert [len(part) for part in order(5, 2, 4)] == [2, 2, 2, 2]


def test_loader_goes_on_where_it_was() -> None:
    def loader() -> ResumableLoader:
        sampler = PromptSampler(12, 2, 0, 1, seed=0, shuffle=True)
        return ResumableLoader(list(range(12)), batch_size=2, sampler=sampler, collate_fn=list)  # type: ignore[arg-type]

    whole, part = loader(), loader()
    expected = list(whole)
    batches = iter(part)
    assert [next(batches), next(batches)] == expected[:2]
    again = loader()
    again.load_state_dict(part.state_dict())
    assert list(again) == expected[2:]
    assert list(again) == expected  # the next epoch is whole


def test_scenes_are_drawn_where_their_boxes_say(tmp_path: Path) -> None:
    scenes = [draw_scene(random.Random(seed)) for seed in range(20)]
    write_coco(scenes, tmp_path / "x.json", tmp_path / "images")
    samples = CocoDetection(read_queries(tmp_path / "x.json", tmp_path / "images", None))
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


def test_digits_become_an_image_folder(tmp_path: Path) -> None:
    data = DigitsData(root=str(tmp_path / "digits"), shots=None)
    data.prepare_data()
    data.setup("validate")
    assert len(data.val_set()) == 600
    assert len(list((tmp_path / "digits" / "train").glob("*/*.png"))) == 1197
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    data.prepare_data()
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    sample = data.val_set()[0]
    assert sample.image.size == (56, 56)
    assert sample.target == "eight"  # folders in the order of their names
