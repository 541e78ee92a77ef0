"""Referring expressions: valid and broken references, and malicious pickles."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import formats
from tests.helpers.data import assert_same_boxes, drawn, refused, said_of, samples_of
from vrft.data import (
    ReferenceData,
)
from vrft.errors import ConfigurationError
from vrft.tasks import GroundingTask


def references(folder: Path, form: str = "pickle", **settings: Any) -> ReferenceData:
    name = "refs(unc).p" if form == "pickle" else "refs.json"
    return ReferenceData(str(folder / name), str(folder / "instances.json"), str(folder / "images"), **settings)


@pytest.mark.parametrize("form", ["pickle", "json"])
def test_a_sentence_asks_for_its_object(form: str, tmp_path: Path) -> None:
    folder = formats.write_references(tmp_path / "x", form=form)
    train, val = samples_of(references(folder, form), tmp_path, GroundingTask())
    for part, samples in (("train", train), ("val", val)):
        boxes = [box for scene in drawn(part) for box in scene]
        assert len(samples) == 2 * len(boxes)
        for i, sample in enumerate(samples):
            assert_same_boxes(sample.target, [boxes[i // 2]])
            assert sample.query == (f"what is {boxes[i // 2].label}" if i % 2 else f"{boxes[i // 2].label} thing")
    assert not {sample.image_id for sample in train} & {sample.image_id for sample in val}
    first, _ = samples_of(references(folder, form, expressions="first"), tmp_path, GroundingTask())
    assert [sample.query for sample in first] == [sample.query for sample in train[::2]]
    swapped, _ = samples_of(references(folder, form, train_split="val", val_split="train"), tmp_path, GroundingTask())
    assert [sample.query for sample in swapped] == [sample.query for sample in val]


def test_an_unknown_split_is_named(tmp_path: Path) -> None:
    folder = formats.write_references(tmp_path / "x")
    said = refused(lambda **more: references(folder, val_split="testA", **more), tmp_path)
    assert said.startswith("data.val_split: no split 'testA' in ")
    assert said.endswith("it has train, val")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ref_id": 1}, "[0] (ref_id 1): the ref_id appears 2 times"),
        ({"ref_id": 0.5}, "[0] (ref_id 0.5): expected ref_id to be a whole number or text, got 0.5"),
        ({"ann_id": 99}, "[0] (ref_id 0): 0 annotations have id 99"),
        ({"ann_id": None}, "[0] (ref_id 0): expected ann_id to be a whole number or text, got None"),
        ({"ann_id": [1]}, "[0] (ref_id 0): expected ann_id to be a whole number or text, got ["),
        ({"ann_id": float("nan")}, "expected ann_id to be a whole number or text, got nan"),
        ({"image_id": 10**30}, "0 images have id a very large number"),
        ({"image_id": 2}, "annotation 100 belongs to image 1, not 2"),
        ({"sentences": []}, "expected a list of sentences, got ["),
        ({"sentences": "text"}, "expected a list of sentences, got 'text'"),
        ({"sentences": [{"sent": ""}]}, "sentences[0]: expected text in sent or raw"),
        ({"sentences": [{"sent": "a"}, 3]}, "sentences[1]: expected text in sent or raw"),
        ({"split": None}, "[0]: expected a reference with a split"),
        ({"split": {}}, "[0]: expected a reference with a split"),
    ],
)
@pytest.mark.parametrize("form", ["pickle", "json"])
def test_a_bad_reference_is_named(form: str, changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    folder = formats.write_references(tmp_path / "x", form="json")
    content = json.loads((folder / "refs.json").read_text())
    content[0] |= changes
    (folder / "refs.json").write_text(json.dumps(content))
    (folder / "refs(unc).p").write_bytes(pickle.dumps(content, protocol=2))
    listed = said_of(lambda **more: references(folder, form, **more), tmp_path, GroundingTask())
    assert said in listed
    assert listed.startswith(str(folder / ("refs(unc).p" if form == "pickle" else "refs.json")))


@pytest.mark.parametrize(
    ("table", "changes", "said"),
    [
        ("annotations", {"bbox": [0, 0, 0, 5]}, "has no area"),
        ("annotations", {"bbox": [0, 0, "5", 5]}, "expected bbox [x, y, width, height] in finite numbers"),
        ("annotations", {"bbox": [0, 0, 10**400, 5]}, "expected bbox [x, y, width, height] in finite numbers"),
        ("annotations", {"bbox": [0, 0, 5]}, "expected bbox [x, y, width, height] in finite numbers"),
        ("annotations", {"bbox": [50, 50, 20, 20]}, "extends beyond its image of 56 x 56"),
        ("annotations", {"id": 101}, "0 annotations have id 100"),
        ("images", {"file_name": "a\0b"}, "image 1: expected a file_name, got 'a\\x00b'"),
        ("images", {"file_name": None}, "image 1: expected a file_name, got None"),
        ("images", {"width": 10**400}, "image 1: expected width and height, got a very large number and 56"),
        ("images", {"id": 2}, "0 images have id 1"),
    ],
)
def test_a_reference_to_a_bad_object_is_named(table: str, changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    folder = formats.write_references(tmp_path / "x")
    content = json.loads((folder / "instances.json").read_text())
    content[table][0] |= changes
    (folder / "instances.json").write_text(json.dumps(content))
    listed = said_of(lambda **more: references(folder, **more), tmp_path, GroundingTask())
    assert listed.startswith(f"{folder / 'refs(unc).p'}: [0] (ref_id 0): ")
    assert said in listed


class Attack:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def attacks(marker: Path) -> dict[str, bytes]:
    path = str(marker).encode()
    return {
        "reduce": pickle.dumps([Attack(marker)]),
        "reduce-0": pickle.dumps([Attack(marker)], protocol=0),
        "class": b"cos\nmkdir\n(V" + path + b"\ntR.",
        "instance": b"(V" + path + b"\nios\nmkdir\n.",
        "object": b"(cos\nmkdir\nV" + path + b"\no.",
        "stack-global": b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93" + b"(V" + path + b"\ntR.",
        "extension": b"\x80\x02\x82\x01.",
        "persistent": b"Vx\nQ.",
        "builtins": b"cbuiltins\neval\n(V1\ntR.",
        "cut": pickle.dumps([{"split": "train"}])[:-9],
        "empty": b"",
        "noise": bytes(range(128, 256)) * 9,
        "length": b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.",
        "memory": b"\x80\x02]r\xff\xff\xff\x7f.",  # a memo index of 2**31: C's unpickler allocates all of it
        "zeros": b"\x80\x05\x96" + b"\xff" * 5 + b"\0\0\0.",  # a byte array of a terabyte
        "hash": b"\x80\x02]K\x01" + b"\x862" * 60 + b"}q\x00.",  # nested pairs, hashed in exponential time
        "no-list": pickle.dumps("text"),
    }


@pytest.mark.parametrize("name", attacks(Path("x")))
def test_a_pickle_never_runs_code(name: str, tmp_path: Path) -> None:
    folder = formats.write_references(tmp_path / "x")
    marker = tmp_path / "ran"
    (folder / "refs(unc).p").write_bytes(attacks(marker)[name])
    assert str(folder / "refs(unc).p") in refused(lambda **more: references(folder, **more), tmp_path)
    assert not marker.exists()


def test_the_attacks_work_on_pickles_own_loader(tmp_path: Path) -> None:
    for name in ("reduce", "reduce-0", "class", "instance", "object", "stack-global"):
        pickle.loads(attacks(tmp_path / name)[name])
        assert (tmp_path / name).exists(), name


def test_a_large_or_self_containing_pickle_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = formats.write_references(tmp_path / "x")
    laughs: list[Any] = []
    for _ in range(60):
        laughs = [laughs] * 10  # small in a pickle, endless when printed
    content: list[Any] = [{"ref_id": 0, "split": "train", "ann_id": laughs}]
    content[0]["sentences"] = content
    more = pickle.loads((folder / "refs(unc).p").read_bytes())
    (folder / "refs(unc).p").write_bytes(pickle.dumps(content + more[1:], protocol=2))
    listed = said_of(lambda **more: references(folder, **more), tmp_path, GroundingTask())
    assert "[0] (ref_id 0): expected ann_id to be a whole number or text, got a list" in listed
    monkeypatch.setattr("vrft.data.datasets.refcoco.MAX_BYTES", 100)
    assert "larger than 100 bytes" in refused(lambda **more: references(folder, **more), tmp_path)


def test_missing_files_of_references_are_named(tmp_path: Path) -> None:
    folder = formats.write_references(tmp_path / "x")
    with pytest.raises(ConfigurationError, match=r"data\.references: no such file"):
        references(folder, "json")
    with pytest.raises(ConfigurationError, match=r"data\.instances: no such file"):
        ReferenceData(str(folder / "refs(unc).p"), str(folder / "x.json"), str(folder))
    with pytest.raises(ConfigurationError, match=r"data\.images: no such folder"):
        ReferenceData(str(folder / "refs(unc).p"), str(folder / "instances.json"), str(folder / "none"))
    (folder / "instances.json").write_text("{}")
    assert "not a COCO or LVIS instances file" in refused(lambda **more: references(folder, **more), tmp_path)


def test_boxes_in_fractions_are_refused(tmp_path: Path) -> None:
    folder = formats.write_references(tmp_path / "x")
    content = json.loads((folder / "instances.json").read_text())
    for entry in content["annotations"]:
        entry["bbox"] = [value / 56 for value in entry["bbox"]]
    (folder / "instances.json").write_text(json.dumps(content))
    with pytest.raises(ConfigurationError, match=r"instances\.json: no coordinate .*expected pixels, not fract"):
        samples_of(references(folder), tmp_path, GroundingTask())
