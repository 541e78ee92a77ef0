"""What reads texts and files of others, and how it is given broken ones.

A target may take an input or raise ConfigurationError. Everything else is a finding: another error, a value that is no
finite number, a box outside its image, or more than `SECONDS` of computing.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from PIL import Image

from tests.helpers import formats
from vrft import tasks
from vrft.boxes import FRAMES
from vrft.cli.score import read_records
from vrft.data import CocoData, CsvData, ImageFolderData, JsonlData, ReasonSegData, RecordData, ReferenceData, YoloData
from vrft.evaluators.average_precision import Truth, read_results
from vrft.report import read_run
from vrft.report.page import embedded
from vrft.run_dir import RunDir
from vrft.tasks import Task
from vrft.training.answer_log import AnswerLog
from vrft.types import Detection, Sample

SECONDS = 2.0
"""Of computing that an input may take; the longest example takes a hundredth."""

WORDS = [
    *("<think>", "</think>", "<answer>", "</answer>", "<answer", "{", "}", "[", "]", "(", ")", '"', "'", ",", ":"),
    *("'Position': ", "'Confidence': ", '"bbox_2d": ', '"label": ', "null", "None", "true", "No Objects", "```json"),
    *("nan", "NaN", "inf", "-Infinity", "1e999", "-1", "0", "-0.0", "1e-320", "9" * 400, "0x10", "1_000", "٣", "½"),
    *("\0", "\ufeff", "\u2028", "\U0001f984", "\ud800", "__import__('os')", "<script>", "../", "%s", "\r\n", " " * 50),
]
VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**70, 0.5, -0.0, 1e308, math.nan, math.inf, -math.inf, {"a": 1}, {}),
    *("", "x", "a" * 3000, "\0", "../../x", "nan", "1", "\U0001f984", [], [[]], [1, 2, 3, 4], [None] * 9),
]


class Target(NamedTuple):
    """Something that reads, valid inputs for it, how they are broken, and how often it gets one."""

    name: str
    examples: list[bytes]
    read: Callable[[bytes], object]
    breaks: Callable[[random.Random, bytes], bytes]
    weight: int


def all_targets(folder: Path) -> list[Target]:
    """Every target; its files are in `folder`."""
    return [*answer_targets(), *reader_targets(folder), *result_targets(folder), *report_targets(folder)]


def broken_text(rng: random.Random, content: bytes) -> bytes:
    """A few cuts, repeats, foreign words and changed characters."""
    text = content.decode("utf-8", "surrogateescape")
    for _ in range(rng.choice((1, 1, 2, 4, 9))):
        start = rng.randrange(len(text) + 1)
        end = min(len(text), start + rng.choice((0, 1, 3, 20)))
        kind = rng.randrange(6)
        if kind == 0:
            text = text[:start] + text[end:]
        elif kind == 1:
            text = text[:end] + text[start:end] * rng.choice((1, 2, 200)) + text[end:]
        elif kind == 2:
            text = text[:start] + chr(rng.choice((rng.randrange(32, 127), rng.randrange(0xD7FF)))) + text[end:]
        elif kind == 3:
            opening = rng.choice(("[", "{", "(", "<answer>", "'", "9"))
            text = text[:start] + opening * rng.choice((50, 5000)) + text[end:]
        else:
            text = text[:start] + rng.choice(WORDS) + text[end:]
    return text.encode("utf-8", "replace" if rng.random() < 0.9 else "surrogatepass")


def broken_bytes(rng: random.Random, content: bytes) -> bytes:
    """A few changed, lost or repeated bytes."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 2, 8))):
        start = rng.randrange(len(data) + 1)
        end = min(len(data), start + rng.choice((0, 1, 4, 100)))
        data[start:end] = rng.choice((b"", rng.randbytes(3), bytes(data[start:end]) * 3, b"\xff", b"\0" * 9, b"I9\n"))
    return bytes(data[: rng.randrange(len(data) + 1)] if rng.random() < 0.1 else data)


def broken_json(rng: random.Random, content: bytes) -> bytes:
    """Fields with another value, missing, doubled or deep; sometimes the text as well."""
    value = json.loads(content)
    for _ in range(rng.choice((1, 1, 2, 5))):
        value = _changed(rng, value)
    broken = json.dumps(value).encode()
    if rng.random() < 0.02:
        broken = broken.replace(b"1", b"[" * 20_000, 1)
    return broken_text(rng, broken) if rng.random() < 0.2 else broken


def broken_lines(rng: random.Random, content: bytes) -> bytes:
    """A line of JSON that is broken."""
    lines = content.splitlines()
    chosen = rng.randrange(len(lines))
    lines[chosen] = broken_json(rng, lines[chosen])
    return b"\n".join(lines) + b"\n"


def _changed(rng: random.Random, value: Any) -> Any:
    inside = isinstance(value, dict | list) and value and rng.random() < 0.9
    if not inside:
        return rng.choice(VALUES)
    if isinstance(value, list):
        i = rng.randrange(len(value))
        kind = rng.randrange(8)
        middle = [] if kind == 0 else [value[i]] * 2 if kind == 1 else [_changed(rng, value[i])]
        return value[:i] + middle + value[i + 1 :]
    key = rng.choice(list(value))
    if rng.random() < 0.1:
        return {name: entry for name, entry in value.items() if name != key}
    return value | {key: _changed(rng, value[key])}


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
]
FORMS = ['<think>so</think><answer>[{"bbox_2d": [1, 2, 30, 40], "label": "cat"}]</answer>']
FORMS += ["<think>so</think><answer>```json\n[{'Position': [1, 2, 30, 40], 'Confidence': 0.5}]\n```</answer>"]
FORMS += [
    "<think></think><answer>(1,2),(30,40)</answer>",
    "<answer>No Objects</answer>",
    "[1, 2, 30, 40]",
    "cat, dog",
    "7",
]


def answer_targets() -> list[Target]:
    """Each task reads completions, and its rewards score them."""
    found = []
    for i, (task, target, metadata, query) in enumerate(QUESTIONS):
        sample = Sample(0, Image.new("1", (500, 400)), 7, query, target, metadata)
        frame = FRAMES["thousandths"]
        examples = [text.encode() for text in (task.target_text(sample, frame), *FORMS)]
        name = f"answer {type(task).__name__}{'' if task.reasoning else ' (no reasoning)'}"
        found.append(Target(name, examples, _scorer(task, sample), broken_text, weight=30 if i < 5 else 20))
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
    """Each data module reads a folder in which one file is broken."""
    detection, classes = tasks.DetectionTask(), tasks.ClassificationTask()
    made: list[Target] = []

    def add(name: str, file: Path, make: Callable[..., RecordData], breaks: Any, task: Task = detection) -> None:
        examples = [file.read_bytes()]
        made.append(Target(name, examples, _loader(file, make, task, folder / "run"), breaks, weight=4))

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
    """Files of boxes and their truth, completions to score, and the answers of an interrupted test."""
    folder = folder / "results"
    tables, _ = formats.coco_tables(folder, "val", 2)
    truth_file, results_file, lines = folder / "truth.json", folder / "results.json", folder / "completions.jsonl"
    truth_file.write_text(json.dumps(tables))
    truth = Truth(truth_file)
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
        log.recall(Sample(3, Image.new("1", (2, 2)), 7, "cat", BOXES))

    (folder / "log").mkdir()
    sample = {"sample": 3, "image_id": 7, "query": "cat", "completion": "x", "tokens": [["x", -0.5]]}
    log = "".join(json.dumps(line) + "\n" for line in ({"asked": {"weights": "x"}}, sample, sample | {"sample": 4}))

    def evaluate(content: bytes) -> None:
        array = read_results(write(results_file, content), truth)
        curves = truth.evaluate(array, "coco", "hotcoco")
        json.dumps(curves.numbers("coco", "standard"), allow_nan=False)

    def score(content: bytes) -> None:
        read_records(write(lines, content), tasks.DetectionTask(), "pixels")

    completions = (json.dumps(entry) + "\n").encode() * 2
    return [
        Target("results file", [json.dumps(results).encode()], evaluate, broken_json, weight=6),
        Target("truth file", [truth_file.read_bytes()], lambda c: Truth(write(truth_file, c)), broken_json, weight=6),
        Target("completions to score", [completions], score, broken_lines, weight=6),
        Target("answers of a test", [log.encode()], read_log, broken_lines, weight=6),
    ]


def report_targets(folder: Path) -> list[Target]:
    """Files of a run that a report is made of; whatever is in them, there is one."""
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
    files: list[tuple[str, bytes, Callable[[random.Random, bytes], bytes]]] = [
        ("transcripts.jsonl", _lines(rollout, rollout | {"generation": 1}, rollout | {"rollout": 2}), broken_lines),
        ("evaluation/val-0/answers.jsonl", _lines(line | {"score": 0.5}, line | {"score": None}), broken_lines),
        ("warnings.jsonl", _lines(warned), broken_lines),
        ("summary.json", b'{"base": {"mAP": 0.1}, "tuned": {"mAP": 0.2}, "seconds": 9, "rollouts": 2}', broken_json),
        ("config.yaml", b"seed_everything: !!int 0\ntask: {class_path: !!str T}\nmodel: {a: !!bool no}\n", broken_text),
        ("logs/version_0/metrics.csv", b"step,train/reward,val/coco/AP\n0,,0.1\n0,1.5,\n1,2.5,\n", broken_text),
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
        made.append(Target(f"report of {name}", [example], reader(file, run), breaks, weight=3))
    return made


def _lines(*entries: dict[str, Any]) -> bytes:
    return "".join(json.dumps(entry) + "\n" for entry in entries).encode()
