"""Categories to ask for in held-out images, and a model's map of present categories."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.helpers import CSV_ONLY, formats
from vrft.__main__ import main
from vrft.data import CocoData, YoloData
from vrft.data.bad_records import BadRecords
from vrft.data.record import Record
from vrft.data.record_checks import check_queries
from vrft.errors import ConfigurationError
from vrft.rollout import RolloutEngine
from vrft.tasks import DetectionTask, PresenceTask
from vrft.types import Detection, Frame, PromptBatch, Rollout, Sample

FRAME = Frame(1000, 1000)

ASKING = SimpleNamespace(task=DetectionTask())
"""Module of a trainer whose task asks for boxes."""


def coco(folder: Path, **settings: Any) -> CocoData:
    for part, start in (("train", 1), ("val", 101)):
        tables, _ = formats.coco_tables(folder / part, part, 4, start)
        (folder / f"{part}.json").write_text(json.dumps(tables))
    files = {f"{part}_{kind}": str(folder / f"{part}{end}") for part in ("train", "val") for kind, end in ENDS}
    return CocoData(**files, **settings)


ENDS = (("annotations", ".json"), ("images", ""))


def held_out(data: CocoData | YoloData, tmp_path: Path) -> list[Sample]:
    data.trainer = SimpleNamespace(default_root_dir=str(tmp_path / "run"), lightning_module=ASKING)  # type: ignore[assignment]
    data.setup("validate")
    return [data.val_set()[i] for i in range(len(data.val_set()))]


def pairs(samples: list[Sample]) -> list[tuple[int, str]]:
    return [(sample.image_id, sample.query) for sample in samples]


def annotated(folder: Path) -> list[tuple[int, str]]:
    tables = json.loads((folder / "val.json").read_text())
    names = {entry["id"]: entry["name"] for entry in tables["categories"]}
    entries = sorted(tables["annotations"], key=lambda entry: entry["image_id"])
    return list(dict.fromkeys((entry["image_id"], names[entry["category_id"]]) for entry in entries))


def test_questions_ask_for_annotated_categories_or_for_all(tmp_path: Path) -> None:
    asked = held_out(coco(tmp_path), tmp_path)
    assert pairs(asked) == annotated(tmp_path)
    assert all(sample.target for sample in asked)
    some = list(formats.COLOURS)[:3]
    everything = held_out(coco(tmp_path, val_queries="all", val_categories=some), tmp_path)
    assert pairs(everything) == [(image, name) for image in range(101, 105) for name in some]
    there = {*annotated(tmp_path)}
    assert [bool(sample.target) for sample in everything] == [pair in there for pair in pairs(everything)]
    assert 0 < sum(bool(sample.target) for sample in everything) < len(everything)


def test_a_map_sets_the_questions_and_omitted_categories_are_counted(tmp_path: Path) -> None:
    coco(tmp_path)
    there = annotated(tmp_path)
    image, name = there[0]
    absent = next(colour for colour in formats.COLOURS if (image, colour) not in there)
    (tmp_path / "map.json").write_text(json.dumps({str(image): [absent, name, absent], "104": []}))
    with pytest.warns(UserWarning, match=f"{len(there) - 1} of {len(there)} annotated pairs of image and category are"):
        asked = held_out(coco(tmp_path, val_queries=str(tmp_path / "map.json")), tmp_path)
    assert pairs(asked) == [(image, absent), (image, name)]
    assert [bool(sample.target) for sample in asked] == [False, True]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = held_out(coco(tmp_path, val_queries=str(tmp_path / "map.json"), per_image=True), tmp_path)
    assert pairs(whole) == [(image, f"{absent}, {name}")]


def test_training_is_independent_of_held_out_queries(tmp_path: Path) -> None:
    sets = []
    for queries in ("annotated", "all"):
        data = coco(tmp_path, val_queries=queries)
        data.trainer = SimpleNamespace(default_root_dir=str(tmp_path / "run"), lightning_module=ASKING)  # type: ignore[assignment]
        data.setup("fit")
        sets.append(pairs([data.train_set()[i] for i in range(len(data.train_set()))]))
    assert sets[0] == sets[1]


def test_yolo_questions_ask_for_all_categories_or_by_a_map(tmp_path: Path) -> None:
    config = str(formats.write_yolo(tmp_path / "x"))
    names = list(formats.COLOURS)[:2]
    everything = held_out(YoloData(config, val_queries="all", categories=names), tmp_path)
    assert pairs(everything) == [(str(image), name) for image in range(4) for name in names]
    (tmp_path / "map.json").write_text(json.dumps({"2": names[:1]}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert pairs(held_out(YoloData(config, val_queries=str(tmp_path / "map.json")), tmp_path)) == [("2", names[0])]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "map.json is not JSON"),
        ("[1]", 'expected {"image id": ["name", ...]}, got [1]'),
        ('{"7": ["red"]}', "map.json: '7': "),
        ('{"101": "red"}', "map.json: '101': expected a list of names, got 'red'"),
        ('{"101": [1]}', "map.json: '101': expected a list of names, got [1]"),
        ("[" * 100_000, "map.json is not JSON: nested too deeply"),
    ],
)
def test_a_bad_map_is_named(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text(content)
    data = coco(tmp_path, val_queries=str(tmp_path / "map.json"))
    with pytest.raises(ConfigurationError) as caught:
        held_out(data, tmp_path)
    assert said in str(caught.value)


def test_queries_need_a_held_out_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"data\.val_queries: no such file: alll; expected annotated, all or"):
        coco(tmp_path, val_queries="alll")
    with pytest.raises(ConfigurationError, match=r"data\.val_queries: expected a file of held-out images"):
        CocoData(str(tmp_path / "train.json"), str(tmp_path), val_queries="all", val_fraction=0.5)


def question(query: str = "traffic light, dog, cat", labels: tuple[str, ...] = ("dog", "dog", "cat")) -> Any:
    target = tuple(Detection((0, 0, 9, 9), label) for label in labels)
    return SimpleNamespace(query=query, target=target, size=(40, 30), image_id=1, metadata={})


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        ("dog, cat", ["dog", "cat"]),
        ("Cat,Traffic_Light.", ["traffic light", "cat"]),
        ("['dog', \"cat\"]", ["dog", "cat"]),
        ("dog\ncat\ncat", ["dog", "cat"]),
        ("a dog, two cats", []),  # not names of categories
        ("None", []),
        ("unicorn, dog", ["dog"]),
        ("", None),
    ],
)
def test_only_queried_names_in_an_answer_count(answer: str, named: list[str] | None) -> None:
    value = PresenceTask().parse(f"<think>x</think><answer>{answer}</answer>", question(), FRAME).value
    assert (None if value is None else [box.label for box in value]) == named  # type: ignore[union-attr]
    assert value is None or all(box.box == (0, 0, 40, 30) for box in value)  # type: ignore[union-attr]


@pytest.mark.parametrize("query", ["none.", "cat, None"])
def test_a_category_called_none_is_a_bad_record(query: str) -> None:
    records = [Record((Path("x.png"),), f"line {i}", i, name, ()) for i, name in enumerate(["cat, nonesuch", query])]
    bad = BadRecords()
    assert check_queries(records, PresenceTask(), bad) == records[:1]
    assert bad.found == [
        f"line 1: category {query.removeprefix('cat, ')!r} reads like the answer None of PresenceTask; rename it"
    ]
    assert check_queries(records, DetectionTask(), bad) == records


@pytest.mark.parametrize("labels", [("dog", "dog", "cat"), ()])
def test_the_target_text_can_be_parsed(labels: tuple[str, ...]) -> None:
    task, asked = PresenceTask(), question(labels=labels)
    answer = task.parse(task.target_text(asked, FRAME), asked, FRAME)
    assert answer.well_formed
    assert {box.label for box in answer.value} == {*labels}  # type: ignore[union-attr]


class Namer(RolloutEngine):
    """An engine that names the first present category and an absent one."""

    def generate(self, policy: Any, batch: PromptBatch, *_: Any, **__: Any) -> Rollout:
        texts = []
        for sample in batch.samples:
            there = [box.label for box in sample.target]
            absent = [name for name in sample.query.split(", ") if name not in there]
            texts.append(f"<think>look</think><answer>{there[0]}, {absent[0]}</answer>")
        nothing = torch.zeros(len(texts), 1)
        return Rollout(nothing.long(), nothing.long(), nothing, nothing, nothing.bool(), texts)


@pytest.mark.slow(seconds=7)
def test_a_models_map_of_present_categories_sets_the_questions(tmp_path: Path, tiny_scenes: list[str]) -> None:
    config = ["--config", "quickstart", *tiny_scenes, CSV_ONLY]
    first = ["--task=PresenceTask", "--data.per_image=true", "--data.val_queries=all"]
    first += ["--trainer.callbacks=[PresenceEvaluator]", f"--model.engine={__name__}.Namer"]
    main(["test", *config, *first, f"--run_dir={tmp_path}/map"])
    path = tmp_path / "map" / "evaluation" / "test-0" / "category_map.json"
    found = json.loads(path.read_text())
    there = annotated(tmp_path)
    assert found.keys() == {str(image) for image, _ in there}
    for image, names in found.items():
        assert len(names) == 2
        assert sum((int(image), name) in there for name in names) == 1

    scores = {}
    for queries in (str(path), "annotated", "all"):
        run = tmp_path / f"run-{len(scores)}"
        main(["test", *config, f"--data.val_queries={queries}", f"--run_dir={run}"])
        about = json.loads((run / "evaluation" / "test-0" / "coco.meta.json").read_text())
        scores[about["queries"]] = about
    assert [scores[name]["prompts"] for name in (str(path), "annotated", "all")] == [
        2 * len(found),
        len(there),
        6 * len(formats.COLOURS),
    ]
    assert scores["annotated"]["numbers"]["AP"] > scores["all"]["numbers"]["AP"]
