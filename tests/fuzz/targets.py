"""The readers of foreign texts and files, which `test_fuzz.py` gives broken inputs.

A target reads an input or refuses it with ConfigurationError. Anything else is a bug: another error, a number that is
not finite, a box outside its image, or more than `SECONDS` of CPU time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from PIL import Image

from tests.fuzz.broken import broken_bytes, broken_json, broken_lines, broken_text
from tests.helpers import annotation_tools, formats
from vrft import tasks
from vrft.boxes import FRAMES
from vrft.cli.score import read_records
from vrft.data import CocoData, CsvData, ImageFolderData, JsonlData, ReasonSegData, RecordData, ReferenceData, YoloData
from vrft.evaluators.results import read_results
from vrft.evaluators.truth import Truth
from vrft.report import read_run
from vrft.report.page import embedded
from vrft.run_dir import RunDir
from vrft.tasks import Task
from vrft.training.answer_log import AnswerLog
from vrft.types import Detection, Sample

SECONDS = 2.0
"""Limit on the CPU time of an input. The slowest example takes a hundredth of this."""

WEIGHTS = {
    "answer DetectionTask": 30,
    "answer DetectionTask (no reasoning)": 30,
    "answer MultiCategoryDetectionTask": 30,
    "answer GroundingTask": 30,
    "answer ClassificationTask": 30,
    **dict.fromkeys(("answer MultipleChoiceTask", "answer CountingTask", "answer PresenceTask"), 20),
    "answer MazeTask": 20,
    **dict.fromkeys(("coco", "lvis", "RefCOCO pickle", "RefCOCO JSON", "RefCOCO instances", "ReasonSeg"), 4),
    **dict.fromkeys(("YOLO data.yaml", "YOLO boxes", "YOLO outlines", "JSON lines", "CSV"), 4),
    **dict.fromkeys((f"tool {name}" for name in annotation_tools.TOOLS), 3),
    **dict.fromkeys(("image png", "image jpg", "image gif", "image webp"), 4),
    **dict.fromkeys(("results file", "truth file", "completions to score", "answers of a test"), 6),
    **dict.fromkeys(("report of transcripts.jsonl", "report of evaluation/val-0/answers.jsonl"), 3),
    **dict.fromkeys(("report of warnings.jsonl", "report of summary.json", "report of config.yaml"), 3),
    "report of evaluation/val-0/warnings_X.json": 3,
    **dict.fromkeys(("report of logs/version_0/metrics.csv", "report of evaluation/val-0/coco_per_category.csv"), 3),
}
"""Name of each target, and its share of the inputs."""

Breaks = Callable[[bytes], SearchStrategy[bytes]]


class Target(NamedTuple):
    """A reader, valid inputs for it, and the strategy that breaks them."""

    name: str
    examples: list[bytes]
    read: Callable[[bytes], object]
    breaks: Breaks

    def inputs(self) -> SearchStrategy[bytes]:
        """Draw an example and break it."""
        return st.sampled_from(self.examples).flatmap(self.breaks)


def all_targets(folder: Path) -> dict[str, Target]:
    """Return every target by name; their files are in `folder`."""
    targets = [*answer_targets(), *reader_targets(folder), *result_targets(folder), *report_targets(folder)]
    return {target.name: target for target in targets}


BOXES = (Detection((10, 20, 300, 400), "cat"), Detection((0, 0, 50, 60), "cat"))
QUESTIONS: list[tuple[Task, Any, dict[str, Any], str]] = [
    (tasks.DetectionTask(), BOXES, {}, "cat"),
    (tasks.DetectionTask(reasoning=False), BOXES, {}, "cat"),
    (tasks.MultiCategoryDetectionTask(), BOXES, {}, "cat, dog"),
    (tasks.GroundingTask(), BOXES[:1], {}, "the grey cat"),
    (tasks.ClassificationTask(), "red panda", {}, ""),
    (tasks.MultipleChoiceTask(), "B", {"choices": ["cat", "dog"]}, "A. cat B. dog"),
    (tasks.CountingTask(), "12", {}, "cats"),
    (tasks.PresenceTask(), BOXES[:1], {}, "cat, dog"),
    (tasks.MazeTask(), "left down", {}, "0-0:RD 0-1:L 1-0:UR 1-1:L from 0-1 to 1-0"),
]
FORMS = ['<think>so</think><answer>[{"bbox_2d": [1, 2, 30, 40], "label": "cat"}]</answer>']
FORMS += ["<think>so</think><answer>```json\n[{'Position': [1, 2, 30, 40], 'Confidence': 0.5}]\n```</answer>"]
FORMS += [
    "<think></think><answer>(1,2),(30,40)</answer>",
    "<answer>No Objects</answer>",
    "[1, 2, 30, 40]",
    "cat, dog",
    "7",
    "<think>so</think><answer>Left, down right up</answer>",
]


def answer_targets() -> list[Target]:
    """Return a target for each task: it parses completions, and its rewards score them."""
    found = []
    for task, target, metadata, query in QUESTIONS:
        sample = Sample(0, (Image.new("1", (500, 400)),), 7, query, target, metadata)
        frame = FRAMES["thousandths"]
        examples = [text.encode() for text in (task.target_text(sample, frame), *FORMS)]
        name = f"answer {type(task).__name__}{'' if task.reasoning else ' (no reasoning)'}"
        found.append(Target(name, examples, _scorer(task, sample), broken_text))
    return found


def _scorer(task: Task, sample: Sample) -> Callable[[bytes], None]:
    rewards = task.rewards()

    def read(content: bytes) -> None:
        answer = task.parse(content.decode("utf-8", "replace"), sample, FRAMES["thousandths"])
        json.dumps([answer.value, answer.reasoning], allow_nan=False)
        for reward in rewards.values():
            (score,) = reward.bounded_scores([answer], [sample])
            assert score is None or math.isfinite(score), f"{type(reward).__name__}: {score}"

    return read


def reader_targets(folder: Path) -> list[Target]:
    """Return the data modules, each of which reads a folder with one broken file."""
    detection, classes = tasks.DetectionTask(), tasks.ClassificationTask()
    made: list[Target] = []

    def add(name: str, file: Path, make: Callable[..., RecordData], breaks: Breaks, task: Task = detection) -> None:
        examples = [file.read_bytes()]
        made.append(Target(name, examples, _loader(file, make, task, folder / "run"), breaks))

    for name in ("coco", "lvis"):
        root = folder / name
        write = formats.write_lvis(root, 2)
        file = write / "lvis_train.json"
        if name == "coco":
            tables, _ = formats.coco_tables(root / "train2017", "train", 2)
            file = root / "train.json"
            file.write_text(json.dumps(tables))

        def instances(file: Path = file, root: Path = root, **settings: Any) -> RecordData:
            held_out = {"val_annotations": str(root / "lvis_val.json"), "val_images": str(root)}
            images = str(root / "train2017" if file.name == "train.json" else root)
            return CocoData(str(file), images, **held_out, **settings)

        add(name, file, instances, broken_json)
    root = formats.write_references(folder / "pickled", 2)
    refs, pickled = root / "refs(unc).p", str(root)
    settings = {"instances": f"{pickled}/instances.json", "images": f"{pickled}/images"}
    add("RefCOCO pickle", refs, lambda **more: ReferenceData(str(refs), **settings, **more), broken_bytes)
    root = formats.write_references(folder / "listed", 2, form="json")
    listed = {"instances": f"{root}/instances.json", "images": f"{root}/images"}
    plain = root / "refs.json"
    add("RefCOCO JSON", plain, lambda **more: ReferenceData(str(plain), **listed, **more), broken_json)
    add(
        "RefCOCO instances",
        root / "instances.json",
        lambda **more: ReferenceData(str(plain), **listed, **more),
        broken_json,
    )
    seg = formats.write_reason_seg(folder / "reason", 2)
    add("ReasonSeg", seg / "train" / "0.json", lambda **more: ReasonSegData(str(seg), **more), broken_json)
    yolo = formats.write_yolo(folder / "yolo", 2)
    labels = yolo.parent / "labels" / "train"
    for name, file in (("YOLO data.yaml", yolo), ("YOLO boxes", labels / "0.txt"), ("YOLO outlines", labels / "1.txt")):
        add(name, file, lambda **more: YoloData(str(yolo), **more), broken_text)
    made += tool_targets(folder)
    rows = formats.write_jsonl(folder / "jsonl", 2)
    train, val = str(rows / "train.jsonl"), str(rows / "val.jsonl")
    add("JSON lines", rows / "train.jsonl", lambda **more: JsonlData(train, val, **more), broken_lines)
    images = folder / "images"
    for part in formats.PARTS:
        for i, (picture, _) in enumerate(formats.scenes(part, 2)):
            for ending in ("png", "jpg", "gif", "tiff", "webp"):
                formats.save(picture, images / part / f"class{i}" / f"{i}.{ending}")
    for ending in ("png", "jpg", "gif", "webp"):
        file = images / "train" / "class0" / f"0.{ending}"
        add(f"image {ending}", file, lambda **more: ImageFolderData(str(images), **more), broken_bytes, classes)
    table = images / "train.csv"
    table.write_text("image,label\n" + "".join(f"train/class{i}/{i}.png,kind {i}\n" for i in range(2)))
    held_out = images / "val.csv"
    held_out.write_text("image,label\nval/class0/0.png,kind 0\n")
    add("CSV", table, lambda **more: CsvData(str(table), str(held_out), **more), broken_text, classes)
    return made


def tool_targets(folder: Path) -> list[Target]:
    """Return the readers of annotation tools, each of which reads a folder with one broken file."""
    made = []
    for name, (kind, _) in annotation_tools.TOOLS.items():
        path = annotation_tools.write(name, folder / f"tool {name}")
        root = folder / f"tool {name}"
        file = min(file for file in root.rglob("*") if file.suffix in (".json", ".xml", ".csv"))
        make = partial(kind, str(path), val_fraction=0.5)
        read = _loader(file, make, tasks.DetectionTask(), folder / "run")
        breaks = broken_json if file.suffix == ".json" else broken_text
        made.append(Target(f"tool {name}", [file.read_bytes()], read, breaks))
    return made


def _loader(file: Path, make: Callable[..., RecordData], task: Task, run: Path) -> Callable[[bytes], None]:
    whole = file.read_bytes()

    def read(content: bytes) -> None:
        file.write_bytes(content)
        try:
            data = make(on_bad_record="skip" if len(content) % 2 else "stop")
            module = SimpleNamespace(task=task)
            trainer = SimpleNamespace(default_root_dir=str(run), lightning_module=module)
            data.trainer = trainer  # type: ignore[assignment]
            data.setup("fit")
            for samples in (data.train_set(), data.val_set()):
                for i in range(min(len(samples), 3)):
                    _check_sample(samples[i])
        finally:
            file.write_bytes(whole)

    return read


def _check_sample(sample: Sample) -> None:
    json.dumps([sample.target, sample.query], allow_nan=False)
    if isinstance(sample.target, tuple):
        width, height = sample.size
        for box in (detection.box for detection in sample.target):
            assert 0 <= box[0] < box[2] <= width, f"{box} of {sample.size}"
            assert 0 <= box[1] < box[3] <= height, f"{box} of {sample.size}"


def result_targets(folder: Path) -> list[Target]:
    """Return the readers of results, of ground truth, of completions to score and of an interrupted test's answers."""
    folder = folder / "results"
    tables, _ = formats.coco_tables(folder, "val", 2)
    truth_file, results_file, lines = folder / "truth.json", folder / "results.json", folder / "completions.jsonl"
    truth_file.write_text(json.dumps(tables))
    truth = Truth.read(truth_file)
    results = [
        {"image_id": row["image_id"], "category_id": row["category_id"], "bbox": row["bbox"], "score": 0.5}
        for row in tables["annotations"]
    ]
    entry = {"completion": FORMS[0], "solution": FORMS[0], "query": "cat", "width": 50, "height": 60, "metadata": {}}

    def write(file: Path, content: bytes) -> Path:
        file.write_bytes(content)
        return file

    def read_log(content: bytes) -> None:
        write(folder / "log" / "answers-0.jsonl", content)
        log = AnswerLog(folder / "log", 0, {"weights": "x"})
        log.recall(Sample(3, (Image.new("1", (2, 2)),), 7, "cat", BOXES))

    (folder / "log").mkdir()
    sample = {"sample": 3, "image_id": 7, "query": "cat", "completion": "x", "tokens": [["x", -0.5]]}
    sample["token_ids"] = [5]
    log = "".join(json.dumps(line) + "\n" for line in ({"asked": {"weights": "x"}}, sample, sample | {"sample": 4}))

    def evaluate(content: bytes) -> None:
        array, _ = read_results(write(results_file, content), truth)
        curves = truth.evaluate(array, "coco", "hotcoco")
        json.dumps(curves.numbers("coco", "standard"), allow_nan=False)

    def score(content: bytes) -> None:
        read_records(write(lines, content), tasks.DetectionTask(), "pixels")

    completions = (json.dumps(entry) + "\n").encode() * 2
    return [
        Target("results file", [json.dumps(results).encode()], evaluate, broken_json),
        Target("truth file", [truth_file.read_bytes()], lambda c: Truth.read(write(truth_file, c)), broken_json),
        Target("completions to score", [completions], score, broken_lines),
        Target("answers of a test", [log.encode()], read_log, broken_lines),
    ]


def report_targets(folder: Path) -> list[Target]:
    """Return the reader of a run's report, for each of its files. It must accept any content."""
    line = {
        "rollout": 1,
        "sample": 3,
        "image_id": 7,
        "query": "cat",
        "completion": "x",
        "reasoning": "x",
        "valid": True,
    }
    line |= {"answer": [[[0, 0, 5.5, 6], "cat", 0.5]], "target": "cat", "reward": 1.5, "image": "0" * 16 + ".jpg"}
    rollout = line | {"generation": 0, "rewards": {"iou": 0.5, "own": None}, "advantage": -0.5, "size": [9, 9]}
    warned = {"rollout": 3, "step": 3, "guard": "entropy", "message": "low"}
    files: list[tuple[str, bytes, Breaks]] = [
        ("transcripts.jsonl", _lines(rollout, rollout | {"generation": 1}, rollout | {"rollout": 2}), broken_lines),
        ("evaluation/val-0/answers.jsonl", _lines(line | {"score": 0.5}, line | {"score": None}), broken_lines),
        ("warnings.jsonl", _lines(warned), broken_lines),
        ("summary.json", b'{"base": {"mAP": 0.1}, "tuned": {"mAP": 0.2}, "seconds": 9, "rollouts": 2}', broken_json),
        ("config.yaml", b"seed_everything: !!int 0\ntask: {class_path: !!str T}\nmodel: {a: !!bool no}\n", broken_text),
        ("logs/version_0/metrics.csv", b"step,train/reward,val/coco/AP\n0,,0.1\n0,1.5,\n1,2.5,\n", broken_text),
        ("evaluation/val-0/warnings_X.json", b'["low", "tied"]', broken_json),
        ("evaluation/val-0/coco_per_category.csv", b'category,AP\ncat,0.5\n"a, b",0.1\n', broken_text),
    ]

    def reader(file: Path, run: Path) -> Callable[[bytes], None]:
        def read(content: bytes) -> None:
            file.write_bytes(content)
            page = embedded(read_run(RunDir(run), []))
            assert not {"<", ">", "&"} & {*page}

        return read

    made = []
    for name, example, breaks in files:
        run = folder / "report" / name.replace("/", "-")
        file = run / name
        file.parent.mkdir(parents=True)
        made.append(Target(f"report of {name}", [example], reader(file, run), breaks))
    return made


def _lines(*entries: dict[str, Any]) -> bytes:
    return "".join(json.dumps(entry) + "\n" for entry in entries).encode()
