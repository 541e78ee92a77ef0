"""COCO files: samples, categories, negatives, and bad entries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.helpers import formats
from tests.helpers.coco import BOX, GOOD, IMAGE, OTHER, coco, coco_data
from tests.helpers.data import samples_of
from vrft.data import CocoData
from vrft.data.splits import COCO_BASE65, COCO_FEW_SHOT8, COCO_NOVEL15
from vrft.errors import ConfigurationError
from vrft.evaluators.truth import Truth


def test_there_is_one_sample_per_image_and_category(tmp_path: Path) -> None:
    samples, _ = samples_of(coco_data(tmp_path), tmp_path)
    assert [(sample.image_id, sample.query, len(sample.target)) for sample in samples] == [(7, "dog", 2), (7, "cat", 1)]
    assert samples[0].target[0] == ((1, 2, 4, 6), "dog", 1.0)  # corners, from x, y, width, height
    assert samples[1].size == (40, 30)


def test_there_is_one_sample_per_image(tmp_path: Path) -> None:
    samples, _ = samples_of(coco_data(tmp_path, per_image=True, categories=["dog", "cat"]), tmp_path)
    assert [(sample.query, [box.label for box in sample.target]) for sample in samples] == [
        ("cat, dog", ["cat", "dog", "dog"])
    ]


def test_categories_select_and_may_differ_for_held_out_images(tmp_path: Path) -> None:
    train, val = samples_of(coco_data(tmp_path, categories=["cat"], val_categories=["dog"]), tmp_path)
    assert [sample.query for sample in train] == ["cat"]
    assert [sample.query for sample in val] == ["dog"]


def test_category_lists_of_the_paper_can_be_named(tmp_path: Path) -> None:
    table = [{"id": i, "name": name} for i, name in enumerate(COCO_NOVEL15, 3)]
    train, _ = samples_of(coco_data(tmp_path, {"categories": table}, categories="coco_novel15"), tmp_path)
    assert {sample.query for sample in train} == {"mouse", "parking meter"}  # ids 3 and 9
    assert len({*COCO_BASE65, *COCO_NOVEL15}) == 80
    assert {*COCO_FEW_SHOT8} < {*COCO_BASE65, *COCO_NOVEL15}
    with pytest.raises(ConfigurationError, match=r"no list is called 'coco_15'; expected one of coco_novel15"):
        coco_data(tmp_path, categories="coco_15")


def test_negatives_ask_for_absent_categories(tmp_path: Path) -> None:
    several = [{"id": i, "file_name": "a.png", "width": 40, "height": 30} for i in range(10)]
    boxes = [{"image_id": i, "category_id": 3, "bbox": [1, 1, 5, 5]} for i in range(8)]
    crowd = [{"image_id": 9, "category_id": 3, "bbox": [1, 1, 5, 5], "iscrowd": 1}]
    changes = {"images": several, "annotations": boxes + crowd}
    train, val = samples_of(coco_data(tmp_path, changes, negatives=0.5), tmp_path)
    absent = [sample for sample in train if not sample.target]
    assert (len(train), len(absent)) == (12, 4)  # half as many as the positives
    assert all(sample.query == "dog" or sample.image_id == 8 for sample in absent)  # image 9 has a crowd of cats
    assert all(sample.target for sample in val)
    again, _ = samples_of(coco_data(tmp_path, changes, negatives=0.5), tmp_path)
    assert [(s.image_id, s.query) for s in again] == [(s.image_id, s.query) for s in train]


def test_lvis_negatives_are_categories_annotated_as_absent(tmp_path: Path) -> None:
    def image(key: int, absent: list[int]) -> dict[str, Any]:
        url = f"http://images.cocodataset.org/val2017/{key}.png"
        return {"id": key, "coco_url": url, "width": 40, "height": 30, "neg_category_ids": absent}

    (tmp_path / "val2017").mkdir()
    for key in (1, 2, 3):
        Image.new("RGB", (40, 30)).save(tmp_path / "val2017" / f"{key}.png")
    changes = {
        "images": [image(1, []), image(2, [9]), image(3, [3])],
        "annotations": [{"image_id": key, "category_id": 3, "bbox": [1, 1, 5, 5]} for key in (1, 2)],
    }
    train, _ = samples_of(coco_data(tmp_path, changes, negatives=5.0), tmp_path)
    assert [(s.image_id, s.query) for s in train if not s.target] == [(2, "dog"), (3, "cat")]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"annotations": None}, "not a COCO or LVIS instances file"),
        ({"categories": [{"id": 1}]}, "categories[0].name: expected text, got None"),
        ({"categories": [{"id": 1, "name": "a\ud800"}]}, "categories[0].name: expected text, got 'a\\ud800'"),
        (
            {"categories": [{"id": 1, "name": name} for name in "ab"]},
            "categories[1].id: 1 appears twice, as 'a' and 'b'",
        ),
        ({"categories": [{"id": 1, "name": " "}]}, "categories[0].name: expected text, got ' '"),
        ({"annotations": []}, "no train records; expected at least one"),
        (
            {"annotations": [BOX | {"bbox": [0.1, 0.2, 0.3, 0.8]}]},
            "no coordinate is above 1; expected pixels",
        ),
    ],
)
def test_a_bad_file_is_an_error(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        samples_of(coco_data(tmp_path, changes, on_bad_record="skip"), tmp_path)
    assert said in str(caught.value)


def test_entries_that_share_a_file_are_named(tmp_path: Path) -> None:
    changes = {"images": [IMAGE, OTHER | {"file_name": IMAGE["file_name"]}], "annotations": [BOX, GOOD]}
    with pytest.warns(UserWarning, match=r"1 file with several entries of images, e\.g\. 'a\.png'; each entry is used"):
        samples_of(coco_data(tmp_path, changes), tmp_path)


@pytest.mark.parametrize(
    ("annotation", "said"),
    [
        (BOX | {"bbox": [0, 0, 1]}, "expected bbox [x, y, width, height] in finite numbers, got [0, 0, 1]"),
        (BOX | {"bbox": [0, 0, "1", 1]}, "in finite numbers"),
        (BOX | {"bbox": [0, 0, float("nan"), 1]}, "in finite numbers, got [0, 0, nan, 1]"),
        (BOX | {"bbox": [0, 0, float("inf"), 1]}, "in finite numbers"),
        (BOX | {"bbox": None}, "in finite numbers, got None"),
        (BOX | {"bbox": [0, 0, 0, 5]}, "[0, 0, 0, 5] has no area"),
        (BOX | {"bbox": [30, 0, 12, 5]}, "[30, 0, 12, 5] extends beyond its image of 40 x 30"),
        (BOX | {"bbox": [-2, 0, 5, 5]}, "extends beyond its image"),
        (BOX | {"bbox": [40.5, 0, 0.4, 5]}, "has no area in its image"),
        (BOX | {"image_id": 5}, "no image has id 5"),
        (BOX | {"category_id": 4}, "no category has id 4"),
        (BOX | {"category_id": True}, "no category has id True"),
        (BOX | {"category_id": "3"}, "no category has id '3'"),
        (BOX | {"id": 1.5}, "expected a whole number, text or null as id"),
        (BOX | {"id": [1]}, "expected a whole number, text or null as id"),
        (BOX | {"image_id": [7]}, "no image has id [7]"),
        (BOX | {"category_id": 3.5}, "no category has id 3.5"),
        (BOX | {"iscrowd": "yes"}, "iscrowd: expected 0 or 1, got 'yes'"),
        (BOX | {"iscrowd": 2}, "iscrowd: expected 0 or 1, got 2"),
        (BOX | {"area": "12"}, "area: expected a finite number of at least 0, got '12'"),
        (BOX | {"area": 10**400}, "area: expected a finite number of at least 0, got a very large number"),
        (BOX | {"area": True}, "area: expected a finite number of at least 0, got True"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_annotation_is_named_and_its_image_left_out(
    annotation: dict[str, Any], said: str, tmp_path: Path
) -> None:
    changes = {"images": [IMAGE, OTHER], "annotations": [BOX | {"id": 1}, GOOD, annotation]}
    with pytest.raises(ConfigurationError) as caught:
        samples_of(coco_data(tmp_path, changes), tmp_path)
    assert said in str(caught.value)
    assert f"instances.json: annotations[2] (id {annotation.get('id')!r}): " in str(caught.value)
    train, _ = samples_of(coco_data(tmp_path, changes, on_bad_record="skip"), tmp_path)
    belongs = annotation["image_id"] == 7
    assert [sample.image_id for sample in train] == ([8] if belongs else [7, 8])
    assert said in (tmp_path / "run" / "bad_records.txt").read_text()


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (IMAGE | {"file_name": "c.png"}, "c.png: no such image"),
        (IMAGE | {"file_name": None}, "images[0] (id 7): expected a file_name, got None"),
        (IMAGE | {"file_name": "instances.json"}, "not a readable image"),
        (IMAGE | {"file_name": "cut.png"}, "can't be decoded"),
        (IMAGE | {"id": True}, "images[0] (id True): id: expected a whole number or text, got True"),
        (IMAGE | {"id": 7.5}, "images[0] (id 7.5): id: expected a whole number or text, got 7.5"),
        (IMAGE | {"id": None}, "images[0] (id None): id: expected a whole number or text, got None"),
        (IMAGE | {"neg_category_ids": 3}, "neg_category_ids: expected a list of ids, got 3"),
        (IMAGE | {"id": 8}, "images[0] (id 8): the id appears 2 times"),
        (IMAGE | {"width": 30, "height": 40}, "is 40 x 30, expected 30 x 40"),
        (IMAGE | {"width": "40"}, "expected width and height, got '40' and 30"),
        (IMAGE | {"height": 0}, "expected width and height, got 40 and 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_image_is_named(image: dict[str, Any], said: str, tmp_path: Path) -> None:
    third = {"id": 9, "file_name": "b.png", "width": 40, "height": 30}
    annotations = [BOX | {"id": 1}, GOOD, GOOD | {"id": 100, "image_id": 9}]
    changes = {"images": [image, OTHER, third], "annotations": annotations}
    picture = Image.effect_noise((40, 30), 80).convert("RGB")
    data = coco_data(tmp_path, changes)
    picture.save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:-200])
    with pytest.raises(ConfigurationError) as caught:
        samples_of(data, tmp_path)
    assert said in str(caught.value)
    data = coco_data(tmp_path, changes, on_bad_record="skip", on_missing_image="skip")
    train, _ = samples_of(data, tmp_path)
    assert 9 in {sample.image_id for sample in train}
    assert 7 not in {sample.image_id for sample in train}


def test_all_problems_are_reported_at_once_and_counted(tmp_path: Path) -> None:
    many = [BOX | {"id": i, "bbox": [0, 0, -1, i]} for i in range(30)]
    with pytest.raises(ConfigurationError) as caught:
        samples_of(coco_data(tmp_path, {"images": [IMAGE, OTHER], "annotations": [GOOD, *many]}), tmp_path)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("60 bad records; fix them")  # the same file serves both splits
    assert len(lines) == 22
    assert lines[-1] == "and 40 more"


def test_a_box_outside_by_rounding_is_clipped(tmp_path: Path) -> None:
    changes = {"images": [IMAGE], "annotations": [BOX | {"bbox": [-0.5, 0, 41, 30.4]}]}
    train, _ = samples_of(coco_data(tmp_path, changes), tmp_path)
    assert train[0].target[0].box == (0, 0, 40, 30)


def test_an_unknown_category_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"data\.categories: 'bird'.*cat, dog"):
        samples_of(coco_data(tmp_path, categories=["bird"]), tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"images": 3}', "[" * 100_000, "\xff"])
def test_a_file_that_is_not_an_instances_file_is_an_error(text: str, tmp_path: Path) -> None:
    data = coco_data(tmp_path)
    (tmp_path / "instances.json").write_bytes(text.encode("latin1"))
    with pytest.raises(ConfigurationError, match="not a COCO or LVIS instances file"):
        samples_of(data, tmp_path)


@pytest.mark.parametrize("part", ["images", "annotations", "categories"])
def test_a_file_with_a_list_twice_is_an_error(part: str, tmp_path: Path) -> None:
    data = coco_data(tmp_path, {"categories": [{"id": 3, "name": "cat"}, {"id": 9, "name": part}]})
    assert samples_of(data, tmp_path)  # the word alone does no harm
    file = tmp_path / "instances.json"
    file.write_text(file.read_text().removesuffix("}") + f', "{part}": []}}')
    again = f"the file has the list '{part}' twice"
    with pytest.raises(ConfigurationError, match=rf"instances\.json: not a COCO or LVIS instances file; {again}$"):
        samples_of(CocoData(*[str(file), str(tmp_path)] * 2), tmp_path)
    with pytest.raises(ConfigurationError, match=again):
        Truth.read(file)


def test_a_split_shares_no_image(tmp_path: Path) -> None:
    images = [{"id": i, "file_name": "a.png" if i % 2 else "b.png", "width": 40, "height": 30} for i in range(2)]
    annotations = [{"image_id": i, "category_id": c, "bbox": [1, 1, 5, 5]} for i in range(2) for c in (3, 9)]
    file = coco(tmp_path, images=images, annotations=annotations)
    train, val = samples_of(CocoData(str(file), str(tmp_path), val_fraction=0.5), tmp_path)
    assert len(train) == len(val) == 2
    assert not {sample.image_id for sample in train} & {sample.image_id for sample in val}
    with pytest.raises(ConfigurationError, match=r"or data\.val_fraction"):
        CocoData(str(file), str(tmp_path))


def test_an_image_in_both_splits_causes_a_warning(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="2 held-out records with an image of the training data"):
        samples_of(coco_data(tmp_path), tmp_path)


def test_too_few_shots_are_explained_by_bad_records(tmp_path: Path) -> None:
    data = coco_data(tmp_path, shots=1)
    (tmp_path / "a.png").unlink()
    with pytest.raises(ConfigurationError, match="no such image"):
        samples_of(data, tmp_path)


def test_ids_may_be_huge_negative_whole_floats_texts_and_those_of_annotations_equal(tmp_path: Path) -> None:
    keys = [2**63 + 1, -5, 2.0, "a/b"]
    images = [IMAGE | {"id": key, "width": 40.0} for key in keys]
    boxes = [{"id": 0, "image_id": key, "category_id": "x", "bbox": [1, 1, 5, 5], "iscrowd": "0"} for key in keys]
    changes = {"images": images, "annotations": boxes, "categories": [{"id": "x", "name": "cat"}]}
    data = coco_data(tmp_path, changes)
    train, _ = samples_of(data, tmp_path)
    assert [(sample.image_id, len(sample.target), sample.size) for sample in train] == [(k, 1, (40, 30)) for k in keys]
    assert data.category_ids() == {"cat": "x"}


def test_categories_of_one_name_are_one_and_an_empty_supercategory_is_not_asked_for(tmp_path: Path) -> None:
    names = {0: "cells", 1: "red", 2: "white", 5: "red"}
    table = [{"id": key, "name": name, "supercategory": "cells" if key else "none"} for key, name in names.items()]
    boxes = [BOX | {"category_id": 1}, BOX | {"category_id": 5, "bbox": [9, 9, 5, 5]}]
    changes = {"categories": table, "annotations": boxes, "images": [IMAGE]}
    data = coco_data(tmp_path, changes, val_queries="all", negatives=9.0)
    train, val = samples_of(data, tmp_path)
    assert [(sample.query, len(sample.target)) for sample in train] == [("red", 2), ("white", 0)]
    assert [sample.query for sample in val] == ["red", "white"]
    assert data.category_ids() == {"cells": 0, "red": 1, "white": 2}
    assert data.ordered_categories() == ["cells", "red", "white"]


def test_the_same_category_twice_is_one(tmp_path: Path) -> None:
    table = [{"id": key, "name": name} for key, name in ((3, "cat"), (9, "dog"), (3.0, "cat"))]  # two files, merged
    data = coco_data(tmp_path, {"categories": table})
    assert {sample.query for sample in samples_of(data, tmp_path)[0]} == {"cat", "dog"}
    truth = Truth({"images": [], "annotations": [], "categories": table}, "x")
    assert [category.ids for category in truth.categories] == [(3,), (9,)]


def test_file_names_may_have_the_separators_of_windows(tmp_path: Path) -> None:
    formats.save(Image.new("RGB", (40, 30)), tmp_path / "deep" / "b.png")
    entry = {"id": 7, "file_name": "deep\\b.png", "width": 40, "height": 30}
    data = coco_data(tmp_path, {"images": [entry], "annotations": [BOX]})
    samples_of(data, tmp_path)
    assert data.train_set().records[0].image == tmp_path / "deep" / "b.png"


def test_a_rotated_box_of_cvat_is_a_bad_record(tmp_path: Path) -> None:
    attributes = [{"occluded": False, "rotation": rotation} for rotation in (0.0, "left", 12.5)]
    boxes = [{"image_id": 7, "category_id": 3, "bbox": [1, 1, 5, 5], "attributes": found} for found in attributes]
    samples_of(coco_data(tmp_path, {"annotations": boxes[:2]}), tmp_path)
    with pytest.raises(ConfigurationError, match=r"annotations\[2\] .*: rotated by 12\.5 degrees; expected an upright"):
        samples_of(coco_data(tmp_path, {"annotations": boxes}), tmp_path)
