from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kornia.augmentation as kornia
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from vrft.data import CocoData, CsvData, DigitsData, ImageFolderData, RecordData
from vrft.data.augmentation import augment
from vrft.data.datamodule import PromptSampler, ResumableLoader
from vrft.data.few_shot import choose_shots
from vrft.data.images import BadImage, check_image, read_image
from vrft.data.scenes import draw_scene, write_coco
from vrft.data.splits import COCO_BASE65, COCO_FEW_SHOT8, COCO_NOVEL15
from vrft.errors import ConfigurationError
from vrft.types import Detection, Sample


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
        ],
    }
    file = tmp_path / "instances.json"
    file.write_text(json.dumps(content | changes))
    return file


def samples_of(data: RecordData, tmp_path: Path, stage: str = "fit") -> tuple[list[Sample], list[Sample]]:
    """What a data module trains on and holds out, without a trainer."""
    data.trainer = SimpleNamespace(default_root_dir=str(tmp_path / "run"))  # type: ignore[assignment]
    data.setup(stage)
    train = list(map(data.train_set().__getitem__, range(len(data.train_set())))) if stage == "fit" else []
    return train, list(map(data.val_set().__getitem__, range(len(data.val_set()))))


def coco_data(tmp_path: Path, changes: dict[str, Any] | None = None, **settings: Any) -> CocoData:
    file = coco(tmp_path, **(changes or {}))
    return CocoData(str(file), str(tmp_path), str(file), str(tmp_path), **settings)


def test_one_sample_for_each_image_and_category(tmp_path: Path) -> None:
    samples, _ = samples_of(coco_data(tmp_path), tmp_path)
    assert [(sample.image_id, sample.query, len(sample.target)) for sample in samples] == [(7, "dog", 2), (7, "cat", 1)]
    assert samples[0].target[0] == ((1, 2, 4, 6), "dog", 1.0)  # corners, from x, y, width, height
    assert samples[1].size == (40, 30)


def test_one_sample_for_each_image(tmp_path: Path) -> None:
    samples, _ = samples_of(coco_data(tmp_path, per_image=True, categories=["dog", "cat"]), tmp_path)
    assert [(sample.query, [box.label for box in sample.target]) for sample in samples] == [
        ("cat, dog", ["cat", "dog", "dog"])
    ]


def test_categories_select_and_may_differ_for_held_out_images(tmp_path: Path) -> None:
    train, val = samples_of(coco_data(tmp_path, categories=["cat"], val_categories=["dog"]), tmp_path)
    assert [sample.query for sample in train] == ["cat"]
    assert [sample.query for sample in val] == ["dog"]


def test_lists_of_the_paper_have_names(tmp_path: Path) -> None:
    table = [{"id": i, "name": name} for i, name in enumerate(COCO_NOVEL15, 3)]
    train, _ = samples_of(coco_data(tmp_path, {"categories": table}, categories="coco_novel15"), tmp_path)
    assert {sample.query for sample in train} == {"mouse", "parking meter"}  # ids 3 and 9
    assert len({*COCO_BASE65, *COCO_NOVEL15}) == 80
    assert {*COCO_FEW_SHOT8} < {*COCO_BASE65, *COCO_NOVEL15}
    with pytest.raises(ConfigurationError, match=r"no list is called 'coco_15'; expected one of coco_novel15"):
        coco_data(tmp_path, categories="coco_15")


def test_negatives_ask_for_what_is_not_there(tmp_path: Path) -> None:
    several = [{"id": i, "file_name": "a.png", "width": 40, "height": 30} for i in range(10)]
    boxes = [{"image_id": i, "category_id": 3, "bbox": [1, 1, 5, 5]} for i in range(8)]
    crowd = [{"image_id": 9, "category_id": 3, "bbox": [1, 1, 5, 5], "iscrowd": 1}]
    changes = {"images": several, "annotations": boxes + crowd}
    train, val = samples_of(coco_data(tmp_path, changes, negatives=0.5), tmp_path)
    absent = [sample for sample in train if not sample.target]
    assert (len(train), len(absent)) == (12, 4)  # half as many as there are positives
    assert all(sample.query == "dog" or sample.image_id == 8 for sample in absent)  # 9 has a crowd of cats
    assert all(sample.target for sample in val)
    again, _ = samples_of(coco_data(tmp_path, changes, negatives=0.5), tmp_path)
    assert [(s.image_id, s.query) for s in again] == [(s.image_id, s.query) for s in train]


def test_lvis_negatives_are_those_that_were_looked_for(tmp_path: Path) -> None:
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


BOX = {"image_id": 7, "category_id": 3, "bbox": [0, 0, 1, 1]}
IMAGE = {"id": 7, "file_name": "a.png", "width": 40, "height": 30}
OTHER = {"id": 8, "file_name": "b.png", "width": 40, "height": 30}
GOOD = {"id": 99, "image_id": 8, "category_id": 3, "bbox": [0, 0, 1, 1]}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"annotations": None}, "not a COCO or LVIS instances file"),
        ({"categories": [{"id": 1}]}, "categories[0]: expected an integer id and a name"),
        ({"categories": [{"id": 1, "name": "a"}] * 2}, "categories[1].id: 1 is there twice"),
        ({"annotations": []}, "no train records; expected at least one"),
    ],
)
def test_a_bad_file_ends_it(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        samples_of(coco_data(tmp_path, changes, on_bad_record="skip"), tmp_path)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("annotation", "said"),
    [
        (BOX | {"bbox": [0, 0, 1]}, "expected bbox [x, y, width, height] in finite numbers, got [0, 0, 1]"),
        (BOX | {"bbox": [0, 0, "1", 1]}, "in finite numbers"),
        (BOX | {"bbox": [0, 0, float("nan"), 1]}, "in finite numbers, got [0, 0, nan, 1]"),
        (BOX | {"bbox": [0, 0, float("inf"), 1]}, "in finite numbers"),
        (BOX | {"bbox": None}, "in finite numbers, got None"),
        (BOX | {"bbox": [0, 0, 0, 5]}, "[0, 0, 0, 5] has no area"),
        (BOX | {"bbox": [30, 0, 12, 5]}, "[30, 0, 12, 5] stands out of its image of 40 x 30"),
        (BOX | {"bbox": [-2, 0, 5, 5]}, "stands out of its image"),
        (BOX | {"bbox": [40.5, 0, 0.4, 5]}, "has no area in its image"),
        (BOX | {"image_id": 5}, "no image has id 5"),
        (BOX | {"category_id": 4}, "no category has id 4"),
        (BOX | {"category_id": True}, "no category has id True"),
        (BOX | {"category_id": "3"}, "no category has id '3'"),
        (BOX | {"id": "x"}, "expected an integer id"),
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
        (IMAGE | {"file_name": "instances.json"}, "not an image that can be read"),
        (IMAGE | {"file_name": "cut.png"}, "can't be decoded"),
        (IMAGE | {"id": "7"}, "images[0] (id '7'): expected an integer id"),
        (IMAGE | {"id": 8}, "images[0] (id 8): the id is there 2 times"),
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
    data = coco_data(tmp_path, changes, on_bad_record="skip")
    train, _ = samples_of(data, tmp_path)
    assert 9 in {sample.image_id for sample in train}
    assert 7 not in {sample.image_id for sample in train}


def test_all_problems_are_reported_at_once_and_counted(tmp_path: Path) -> None:
    many = [BOX | {"id": i, "bbox": [0, 0, -1, i]} for i in range(30)]
    with pytest.raises(ConfigurationError) as caught:
        samples_of(coco_data(tmp_path, {"images": [IMAGE, OTHER], "annotations": [GOOD, *many]}), tmp_path)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("60 bad records; mend them")  # the file is read for both parts
    assert len(lines) == 22
    assert lines[-1] == "and 40 more"


def test_a_box_that_stands_out_by_rounding_is_cut(tmp_path: Path) -> None:
    changes = {"images": [IMAGE], "annotations": [BOX | {"bbox": [-0.5, 0, 41, 30.4]}]}
    train, _ = samples_of(coco_data(tmp_path, changes), tmp_path)
    assert train[0].target[0].box == (0, 0, 40, 30)


def test_an_unknown_category_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"data\.categories: 'bird'.*cat, dog"):
        samples_of(coco_data(tmp_path, categories=["bird"]), tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"images": 3}', "[" * 100_000, "\xff"])
def test_a_file_that_is_no_instances_file(text: str, tmp_path: Path) -> None:
    data = coco_data(tmp_path)
    (tmp_path / "instances.json").write_bytes(text.encode("latin1"))
    with pytest.raises(ConfigurationError, match="not a COCO or LVIS instances file"):
        samples_of(data, tmp_path)


def test_a_split_shares_no_image(tmp_path: Path) -> None:
    images = [{"id": i, "file_name": "a.png" if i % 2 else "b.png", "width": 40, "height": 30} for i in range(2)]
    annotations = [{"image_id": i, "category_id": c, "bbox": [1, 1, 5, 5]} for i in range(2) for c in (3, 9)]
    file = coco(tmp_path, images=images, annotations=annotations)
    train, val = samples_of(CocoData(str(file), str(tmp_path), val_fraction=0.5), tmp_path)
    assert len(train) == len(val) == 2
    assert not {sample.image_id for sample in train} & {sample.image_id for sample in val}
    with pytest.raises(ConfigurationError, match=r"or data\.val_fraction"):
        CocoData(str(file), str(tmp_path))


def test_an_image_that_is_trained_on_and_held_out_is_said(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="2 held-out records have an image that is trained on"):
        samples_of(coco_data(tmp_path), tmp_path)


def test_an_image_that_turns_unreadable_is_replaced_in_training_and_blank_in_evaluation(tmp_path: Path) -> None:
    changes = {"images": [IMAGE, OTHER], "annotations": [BOX | {"id": 1}, GOOD]}
    data = coco_data(tmp_path, changes)
    samples_of(data, tmp_path)
    (tmp_path / "a.png").write_bytes(b"gone")
    replaced, blank = data.train_set()[0], data.val_set()[0]
    assert (replaced.image_id, replaced.index) == (8, 1)
    assert (blank.image_id, blank.index, blank.size) == (7, 0, (40, 30))
    for sample in (replaced, blank):
        assert "a.png" in sample.metadata["replaced"][0] or "image 7" in sample.metadata["replaced"][0]
    (tmp_path / "b.png").unlink()
    with pytest.raises(ConfigurationError, match="no image of the training data can be read any more"):
        data.train_set()[0]


@pytest.mark.parametrize(
    ("mode", "fill", "expected"),
    [
        ("RGBA", (10, 20, 30, 0), (255, 255, 255)),  # what is transparent is white, not what lies beneath
        ("LA", (50, 255), (50, 50, 50)),
        ("L", 77, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("P", 3, None),
        ("CMYK", (0, 0, 0, 0), (255, 255, 255)),
        ("I;16", 40_000, (156, 156, 156)),  # the upper eight bits
    ],
)
def test_any_kind_of_image_becomes_rgb(mode: str, fill: Any, expected: tuple[int, ...] | None, tmp_path: Path) -> None:
    path = tmp_path / ("x.tiff" if mode == "CMYK" else "x.png")
    Image.new(mode, (30, 20), fill).save(path)
    image = read_image(path)
    assert (image.mode, image.size, check_image(path)) == ("RGB", (30, 20), (30, 20))
    assert expected in (None, image.getpixel((3, 3)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_unless_the_annotations_were_made_without(orientation: int, tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    picture = Image.new("RGB", (64, 32), "white")
    picture.paste("black", (0, 0, 16, 16))
    tags = Image.Exif()
    tags[0x0112] = orientation
    picture.save(path, exif=tags, quality=95)
    turned = (32, 64) if orientation > 4 else (64, 32)
    assert check_image(path) == check_image(path, turned) == read_image(path).size == turned
    reference = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    assert np.array_equal(np.asarray(read_image(path)), np.asarray(reference))
    if orientation > 4:
        assert check_image(path, (64, 32)) == (64, 32)
        assert max(read_image(path, (64, 32)).getpixel((4, 4))) < 40  # as it lies in the file
    with pytest.raises(BadImage, match="expected 10 x 10"):
        check_image(path, (10, 10))


@pytest.mark.parametrize(
    ("size", "reason"), [((20_000, 20_000), "pixels"), ((9500, 9500), "are more than"), ((2100, 10), "one side")]
)
def test_bombs_and_threads_are_refused(size: tuple[int, int], reason: str, tmp_path: Path) -> None:
    Image.new("1", size).save(tmp_path / "x.png")  # a few kilobytes
    for read in (read_image, check_image):
        with pytest.raises(BadImage, match=reason):
            read(tmp_path / "x.png")


def test_a_cut_jpeg_is_found_without_decoding_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.effect_noise((200, 200), 90).convert("RGB").save(tmp_path / "x.jpg")
    whole = (tmp_path / "x.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "padded.jpg").write_bytes(whole + b"\0" * 100)  # whole, but without its marker at the end
    with pytest.raises(BadImage, match="truncated"):
        check_image(tmp_path / "cut.jpg")
    assert check_image(tmp_path / "padded.jpg") == (200, 200)
    monkeypatch.setattr(Image.Image, "convert", None)
    assert check_image(tmp_path / "x.jpg") == (200, 200)


def flip() -> list[torch.nn.Module]:
    return [kornia.RandomHorizontalFlip(p=1.0)]


def test_boxes_follow_a_flip() -> None:
    image = Image.new("RGB", (40, 30))
    image.paste("red", (5, 10, 15, 20))
    sample = Sample(0, image, 0, "x", (Detection((5, 10, 15, 20), "x"), Detection((0, 0, 40, 30), "x")))
    moved = augment(sample, flip(), (0, 0, 0))
    assert [tuple(map(round, box.box)) for box in moved.target] == [(25, 10, 35, 20), (0, 0, 40, 30)]
    assert moved.image.getpixel((30, 15)) == (255, 0, 0)
    assert moved.image.getpixel((10, 15)) == (0, 0, 0)


def test_augmentation_follows_from_seed_epoch_and_index(tmp_path: Path) -> None:
    scene, boxes = draw_scene(random.Random(1))
    sample = Sample(0, scene, 0, "x", tuple(boxes))
    modules = [kornia.RandomAffine(degrees=0.0, translate=(0.1, 0.1), scale=(0.9, 1.1), p=1.0)]
    first, same, other = (augment(sample, modules, (0, epoch, 0)) for epoch in (3, 3, 4))
    assert first.target == same.target != other.target
    assert np.array_equal(np.asarray(first.image), np.asarray(same.image))
    state = torch.random.get_rng_state()
    augment(sample, modules, (0, 1, 0))
    assert torch.equal(state, torch.random.get_rng_state())  # the run's own numbers are left alone


def test_a_sample_whose_box_would_leave_the_image_stays_as_it_is() -> None:
    sample = Sample(0, Image.new("RGB", (40, 40)), 0, "x", (Detection((0, 0, 8, 8), "x"),))
    away = [kornia.RandomAffine(degrees=0.0, translate=(0.9, 0.9), p=1.0)]
    kept = [augment(sample, away, (0, 0, index)) for index in range(20)]
    assert any(other is sample for other in kept)
    for other in kept:
        x0, y0, x1, y1 = other.target[0].box
        assert (x1 - x0) * (y1 - y0) >= 32  # half of it


def test_only_training_is_augmented(tmp_path: Path) -> None:
    train, val = samples_of(coco_data(tmp_path, augmentation=flip()), tmp_path)
    assert [round(v) for v in train[0].target[0].box] == [36, 2, 39, 6]
    assert val[0].target[0].box == (1, 2, 4, 6)


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


def test_why_there_are_too_few_shots_is_said(tmp_path: Path) -> None:
    data = coco_data(tmp_path, shots=1)
    (tmp_path / "a.png").unlink()
    with pytest.raises(ConfigurationError, match="no such image"):
        samples_of(data, tmp_path)


def test_shots_are_seeded_nested_and_per_category() -> None:
    items = [(category, i) for i in range(50) for category in "ab"]
    four = choose_shots(items, lambda item: item[0], 4, 1, lambda _: True)
    assert Counter(category for category, _ in four) == {"a": 4, "b": 4}
    assert four == choose_shots(items, lambda item: item[0], 4, 1, lambda _: True)
    assert four != choose_shots(items, lambda item: item[0], 4, 2, lambda _: True)
    assert set(four) < set(choose_shots(items, lambda item: item[0], 5, 1, lambda _: True))
    usable = choose_shots(items, lambda item: item[0], 4, 1, lambda item: item not in four)
    assert not {*usable} & {*four}  # others take the place of what can't be used
    with pytest.raises(ConfigurationError, match="at least 51 images of 'a', got 50"):
        choose_shots(items, lambda item: item[0], 51, 1, lambda _: True)
    with pytest.raises(ConfigurationError, match="at least 1"):
        choose_shots(items, lambda item: item[0], 0, 1, lambda _: True)


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


@pytest.mark.parametrize(
    ("had", "batch", "world", "start"),
    [
        (8, 4, 1, 8),  # a larger batch
        (8, 2, 2, 8),  # the same on two ranks
        (10, 1, 1, 10),  # a smaller one
        (10, 6, 1, 6),  # the remainder of a batch is taken again
        (8, 11, 1, 0),
        (20, 3, 3, 0),  # 3 of 23 are left, which are no batch of 9: the next epoch
        (22, 5, 2, 0),  # the epoch was over
    ],
)
def test_a_loader_with_another_global_batch_goes_on_where_it_was(had: int, batch: int, world: int, start: int) -> None:
    def loaders(batch: int, world: int) -> list[ResumableLoader]:
        samplers = [PromptSampler(23, batch, rank, world, seed=0, shuffle=True) for rank in range(world)]
        return [ResumableLoader(list(range(23)), batch_size=batch, sampler=s, collate_fn=list) for s in samplers]  # type: ignore[arg-type]

    before, after = loaders(2, 1)[0], loaders(batch, world)
    batches = iter(before)
    first = [sample for _ in range(had // 2) for sample in next(batches)]
    for loader in after:
        loader.load_state_dict(before.state_dict())
    then = [sample for turn in zip(*after, strict=True) for row in zip(*turn, strict=True) for sample in row]
    everything = [sample for batch in loaders(1, 1)[0] for sample in batch]
    assert first == everything[:had]
    assert then == everything[start : 23 // (batch * world) * batch * world]


def test_scenes_are_drawn_where_their_boxes_say(tmp_path: Path) -> None:
    scenes = [draw_scene(random.Random(seed)) for seed in range(20)]
    write_coco(scenes, tmp_path / "x.json", tmp_path / "images")
    data = CocoData(*[str(tmp_path / name) for name in ("x.json", "images")] * 2)
    _, samples = samples_of(data, tmp_path, "validate")
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
    _, samples = samples_of(data, tmp_path, "validate")
    assert len(samples) == 600
    assert len(list((tmp_path / "digits" / "train").glob("*/*.png"))) == 1197
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    data.prepare_data()
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    assert samples[0].size == (56, 56)
    assert samples[0].target == "eight"  # folders in the order of their names
