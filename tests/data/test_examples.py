"""Examples in the prompt: which training images they are."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from vrft.data import ImageFolderData, JsonlData
from vrft.data.loaders import PromptSampler
from vrft.data.record_set import RecordSet
from vrft.errors import ConfigurationError
from vrft.tasks import ClassificationTask
from vrft.types import Sample

CLASSES = ("rose", "lily", "daisy")


def folder(path: Path, per_class: int = 4) -> Path:
    """Write images of three classes, each of another colour, and as many held-out ones."""
    number = 0
    for part in ("train", "val"):
        for name in CLASSES:
            (path / part / name).mkdir(parents=True)
            for i in range(per_class):
                number += 1
                Image.new("RGB", (30, 30), (number, 0, 0)).save(path / part / name / f"{i}.png")
    return path


def setup(data: Any, tmp_path: Path, stage: str = "fit", world_size: int = 1) -> Any:
    module = SimpleNamespace(task=ClassificationTask(), batches_per_step=1, difficulty=None)
    stages = {"testing": stage == "test", "predicting": stage == "predict"}
    run = str(tmp_path / "run")
    data.trainer = SimpleNamespace(default_root_dir=run, lightning_module=module, world_size=world_size, **stages)
    data.setup(stage)
    return data


def shown(sample: Sample) -> list[int]:
    """Return the colours of a sample's examples."""
    return [example.image.getpixel((0, 0))[0] for example in sample.examples]  # type: ignore[index]


def batches(data: Any, world_size: int, rank: int = 0, epoch: int = 0) -> list[list[Sample]]:
    """Return the batches of an epoch, of four prompts over all ranks."""
    samples: RecordSet = data.train_set()
    sampler = PromptSampler(len(samples), 4 // world_size, rank, world_size, seed=3, shuffle=True)
    sampler.set_epoch(epoch)
    samples.epoch, samples.sampler = epoch, sampler
    order = list(sampler)
    return [[samples[i] for i in order[n : n + 4 // world_size]] for n in range(0, len(order), 4 // world_size)]


def test_a_batch_has_the_same_examples_on_any_number_of_ranks(tmp_path: Path) -> None:
    data = setup(ImageFolderData(str(folder(tmp_path / "x")), examples=3), tmp_path)
    alone = batches(data, 1)
    assert [sample.target for sample in alone[0][0].examples] != [sample.target for sample in alone[1][0].examples]
    for rank in (0, 1):
        for one, other in zip(alone, batches(data, 2, rank), strict=True):
            assert {tuple(shown(sample)) for sample in [*one, *other]} == {tuple(shown(one[0]))}
            assert len({id(sample.examples) for sample in other}) == 1  # what a batch shares is encoded once
    again = setup(ImageFolderData(str(tmp_path / "x"), examples=3), tmp_path)  # as a run that resumes
    assert [shown(batch[0]) for batch in batches(again, 1)] == [shown(batch[0]) for batch in alone]
    assert [shown(batch[0]) for batch in batches(again, 1, epoch=1)] != [shown(batch[0]) for batch in alone]


def test_examples_take_the_categories_in_turn_and_never_an_image_that_is_asked_about(tmp_path: Path) -> None:
    data = setup(ImageFolderData(str(folder(tmp_path / "x")), examples=5, batch_size=4), tmp_path)
    for epoch in range(5):
        for batch in batches(data, 1, epoch=epoch):
            asked = {sample.image.getpixel((0, 0))[0] for sample in batch}  # type: ignore[index]
            found = shown(batch[0])
            assert len({*found}) == 5
            assert not {*found} & asked
            assert max(found) <= 12  # held-out images have larger numbers
            counts = Counter(str(example.target) for example in batch[0].examples)
            assert sorted(counts.values()) in ([1, 2, 2], [1, 1, 3])  # a batch may hold a whole class


def test_an_evaluation_has_the_same_examples_for_all(tmp_path: Path) -> None:
    data = setup(ImageFolderData(str(folder(tmp_path / "x")), examples=2), tmp_path, "validate")
    held_out = [data.val_set()[i] for i in range(12)]
    assert {tuple(shown(sample)) for sample in held_out} == {tuple(shown(held_out[0]))}
    assert all(1 <= number <= 12 for number in shown(held_out[0]))
    other = setup(ImageFolderData(str(tmp_path / "x"), examples=2, seed=1), tmp_path, "validate")
    assert shown(other.val_set()[0]) != shown(held_out[0])
    without = setup(ImageFolderData(str(tmp_path / "x")), tmp_path, "validate")
    assert without.val_set()[0].examples == ()


def test_an_example_is_no_image_of_the_evaluation(tmp_path: Path) -> None:
    """The held-out file asks about two of the three training images."""
    for i in range(3):
        Image.new("RGB", (30, 30), (i, 0, 0)).save(tmp_path / f"{i}.png")
    rows = [{"image": f"{i}.png", "problem": "What?", "solution": f"class {i}"} for i in range(3)]
    for part, some in (("train", rows), ("val", rows[:2])):
        (tmp_path / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    files = str(tmp_path / "train.jsonl"), str(tmp_path / "val.jsonl")
    data = setup(JsonlData(*files, examples=1), tmp_path, "validate")
    assert shown(data.val_set()[0]) == [2]
    data = setup(JsonlData(*files, examples=2), tmp_path, "validate")
    with pytest.raises(ConfigurationError, match=r"data\.examples: expected at most 1, the labelled training images"):
        data.val_set()[0]


@pytest.mark.parametrize(
    ("settings", "world_size", "said"),
    [
        ({"examples": -1}, 1, "data.examples: expected at least 0, got -1"),
        (
            {"examples": 13, "batch_size": 1},
            1,
            "expected at most 12, its labelled training images, got 13",
        ),
        ({"examples": 5, "batch_size": 4}, 2, "a batch of 8 prompts may be about all but 4 of the 12 labelled"),
    ],
)
def test_too_many_examples_are_refused(settings: Any, world_size: int, said: str, tmp_path: Path) -> None:
    folder(tmp_path / "x")
    with pytest.raises(ConfigurationError, match=said):
        setup(ImageFolderData(str(tmp_path / "x"), **settings), tmp_path, world_size=world_size)


def test_batches_count_all_images_of_questions_and_examples(tmp_path: Path) -> None:
    names = [[f"{i}-{side}.png" for side in "ab"] for i in range(6)]
    for i, pair in enumerate(names):
        for j, name in enumerate(pair):
            Image.new("RGB", (30, 30), (i, j, 0)).save(tmp_path / name)
    rows = [{"images": pair, "problem": "What?", "solution": f"class {i % 2}"} for i, pair in enumerate(names)]
    for part in ("train", "val"):
        (tmp_path / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = str(tmp_path / "train.jsonl"), str(tmp_path / "val.jsonl")
    said = "a batch of 4 prompts may be about all but 4 of the 12 labelled training images, and 3 examples need 6 other"
    with pytest.raises(ConfigurationError, match=said):
        setup(JsonlData(*files, examples=3, batch_size=4), tmp_path)
    data = setup(JsonlData(*files, examples=2, batch_size=4), tmp_path)
    assert {len(sample.examples) for batch in batches(data, 1) for sample in batch} == {2}
    assert data.images_per_prompt() == 2 + 2 * 2
    assert setup(JsonlData(*files), tmp_path).images_per_prompt() == 2


def test_an_unreadable_example_is_an_error_and_a_replaced_image_is_no_example(tmp_path: Path) -> None:
    data = setup(ImageFolderData(str(folder(tmp_path / "x")), examples=8, batch_size=4), tmp_path)
    (first,) = [batch for batch in batches(data, 1) if batch[0].index == batches(data, 1)[0][0].index]
    samples: RecordSet = data.train_set()
    samples.choices.clear()
    Path(str(samples.records[first[0].index].image)).unlink()
    replacement = samples[first[0].index]
    assert replacement.metadata["replaced"]
    assert replacement.image.getpixel((0, 0))[0] not in shown(replacement)  # type: ignore[index]
    samples.choices.clear()
    for record in samples.records:
        Path(str(record.image)).unlink(missing_ok=True)
    with pytest.raises(ConfigurationError, match=r"data\.examples: .*no such image"):
        samples[first[0].index]
