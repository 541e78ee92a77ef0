"""The doctor finds mistakes that would cost a day, and none in a correct config."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from torch import nn

from tests.helpers import CSV_ONLY
from tests.helpers.formats import write_jsonl
from vrft.__main__ import main
from vrft.data.datasets.scenes import FreshScenes, draw_scene, write_coco
from vrft.doctor.memory import optimizer_bytes
from vrft.doctor.probe import print_formats
from vrft.doctor.prompts import GARBAGE, check_lengths, unlimited_counts
from vrft.doctor.samples_picture import TILE_WIDTH, draw_tile
from vrft.policy import Policy
from vrft.rollout import RolloutEngine
from vrft.tasks import DetectionTask
from vrft.types import Detection, Frame, PromptBatch, Rollout

Said = tuple[int, str]
PAYS_FOR_GARBAGE = f"{{class_path: FunctionReward, init_args: {{function: {__name__}.pays_for_garbage}}}}"


@pytest.fixture
def doctor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Return a function that runs doctor on 60 scenes, optionally changed, and returns exit code and output."""
    write_coco([draw_scene(random.Random(i)) for i in range(60)], tmp_path / "x.json", tmp_path / "images")

    def run(*more: str, change: Callable[[dict[str, Any]], None] = lambda _: None) -> Said:
        content = json.loads((tmp_path / "x.json").read_text())
        change(content)
        (tmp_path / "changed.json").write_text(json.dumps(content))
        files = [f"--data.{part}_annotations={tmp_path}/changed.json" for part in ("train", "val")]
        files += [f"--data.{part}_images={tmp_path}/images" for part in ("train", "val")]
        config = ["--config", "quickstart", f"--run_dir={tmp_path}/run", CSV_ONLY]
        code = main(["doctor", *config, *files, *more])
        return code, " ".join(capsys.readouterr().out.split())

    return run


@pytest.mark.parametrize("limits", [{"min_pixels": 12544, "max_pixels": 12544}, {}], ids=str)
def test_image_tokens_are_counted_with_and_without_limits(limits: dict[str, int]) -> None:
    policy = Policy("tiny-detection", **limits)  # type: ignore[arg-type]
    policy.load(keep_reference=False)
    module: Any = SimpleNamespace(policy=policy, encoder=policy.encoder(DetectionTask("Detect {query}")))
    batch = module.encoder([FreshScenes(1, 0, 0)[0]])
    assert int((batch.inputs[0]["input_ids"] == policy.base.config.image_token_id).sum()) == (16 if limits else 4)
    expected = [("image with the checkpoint's own limits", [4])] if limits else []
    assert list(unlimited_counts(module, batch)) == expected
    module.task, module.max_completion_length = DetectionTask("Detect {query}"), 999
    said = io.StringIO()
    data: Any = SimpleNamespace()
    assert list(check_lengths(module, data, batch, Console(file=said, width=200))) == []
    enlarged = "min_pixels=12544, max_pixels=12544 makes images larger than the checkpoint's own limits do"
    assert (enlarged in said.getvalue()) == bool(limits)


@pytest.mark.parametrize("reasons", [["bad number at character 20", "bad number at character 3", *"abcd"]])
def test_reasons_are_counted_without_positions_and_completely(reasons: list[str]) -> None:
    answers = [SimpleNamespace(problem=reason, well_formed=False) for reason in [*reasons, None]]
    answers.append(SimpleNamespace(problem=None, well_formed=True))
    said = io.StringIO()
    seen: Any = [SimpleNamespace(answer=answer) for answer in answers]
    assert print_formats(seen, Console(file=said, width=200)) == 1
    counts = [line.split()[0] for line in said.getvalue().splitlines()[1:]]
    assert counts == ["2", "1", "1", "2", "1"]
    assert "2 of 8 not valid: bad number\n" in said.getvalue()


def test_nothing_is_wrong_with_the_quickstart(doctor: Callable[..., Said], tmp_path: Path) -> None:
    code, said = doctor("--trainer.devices=2", "--trainer.strategy=fsdp2")  # still from one process
    assert (code, "problem:" in said) == (0, False)
    assert "no problems found" in said
    for part in ("records, 8 categories", "target with end token", "ground truth", "together"):
        assert part in said
    with Image.open(tmp_path / "run" / "doctor" / "samples.png") as sheet:
        colours = sheet.convert("RGB").getcolors(1 << 24)
    assert colours is not None
    assert {(220, 30, 30)} <= {colour for _, colour in colours}  # the boxes
    assert not (tmp_path / "run" / "config.yaml").exists()  # the folder is still free for the run


def test_pictures_of_samples_name_the_file_and_keep_labels_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = FreshScenes(1, 0, 0)[0]
    width, height = sample.size
    edge = Detection((width - 2, 0, width, height), "a category with a long name")
    task: Any = SimpleNamespace(
        target_text=lambda *_: "",
        image_note=lambda *_: "",
        question=lambda *_: "which?",
        parse=lambda *_: SimpleNamespace(value=(edge,)),
    )
    written: list[tuple[float, str]] = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda _, at, text, **__: written.append((at[0], text)))
    draw_tile(task, sample, Frame(width, height), "/photos/a.jpg")
    (left, label), (_, question) = written
    length = ImageDraw.Draw(Image.new("RGB", (1, 1))).textlength(label, ImageFont.load_default(11))
    assert left + length <= TILE_WIDTH
    assert question == f"{sample.index} (a.jpg): which?"


def swap_axes(content: dict[str, Any]) -> None:
    for entry in content["annotations"]:
        x, y, w, h = entry["bbox"]
        entry["bbox"] = [y, x, h, w]


def shift_ids(content: dict[str, Any]) -> None:
    for entry in content["annotations"]:
        entry["category_id"] = entry["category_id"] % len(content["categories"]) + 1


def shift_ids_beyond(content: dict[str, Any]) -> None:
    for entry in content["annotations"]:
        entry["category_id"] += 1


def lose_an_image(content: dict[str, Any]) -> None:
    content["images"][3]["file_name"] = "gone.png"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (swap_axes, "x and y are swapped"),
        (shift_ids_beyond, "no category has id 9"),
        (lose_an_image, "gone.png: no such image"),
    ],
)
def test_faults_of_the_data_are_found(
    change: Callable[[dict[str, Any]], None], reason: str, doctor: Callable[..., Said]
) -> None:
    code, said = doctor(change=change)
    assert code == 1
    assert reason in said.partition("problem:")[2]


def shrink(content: dict[str, Any]) -> None:
    content["annotations"][5]["bbox"][2:] = [0.01, 0.01]


def test_objects_that_are_too_small_for_the_coordinates_are_named(doctor: Callable[..., Said]) -> None:
    counting = "--model.rewards.length=Length", "--model.rewards.repetition=Repetition"  # need the tokens of texts
    code, said = doctor("--probe=0", *counting, change=shrink)
    assert code == 0
    assert said.count("note: 1 of ") == 2  # in both splits, of more than 100 objects each
    assert "changed.json: image " in said
    assert "0.01 x 0.01 pixels at " in said
    assert "and model.rewards.iou needs more than 0.5; set model.policy.coordinate_decimals=1, or leave" in said


def said(texts: list[str]) -> Rollout:
    nothing = torch.zeros(len(texts), 1)
    return Rollout(nothing.long(), nothing.long(), nothing, nothing, nothing.bool(), texts)


class Babbler(RolloutEngine):
    """An engine that never gives a valid answer."""

    def generate(self, policy: Any, batch: PromptBatch, *_: Any, **__: Any) -> Rollout:
        return said(["Certainly! I see a red thing."] * len(batch.samples))


class Oracle(RolloutEngine):
    """An engine that finds the objects of the queried colour in the drawn scenes, independent of the annotations."""

    def generate(self, policy: Any, batch: PromptBatch, *_: Any, **__: Any) -> Rollout:
        texts = []
        for sample, frame in zip(batch.samples, batch.frames, strict=True):
            _, drawn = draw_scene(random.Random(sample.image_id - 1))
            asked = replace(sample, target=tuple(box for box in drawn if box.label == sample.query))
            texts.append(DetectionTask().target_text(asked, frame))
        return said(texts)


@pytest.mark.parametrize(
    ("change", "code", "reason"),
    [
        (lambda _: None, 0, "mean IoU 1.000 on"),
        (shift_ids, 1, "objects are labelled with the category after their own"),
    ],
)
def test_ids_that_are_off_by_one_are_found_by_a_model_that_knows_the_categories(
    change: Callable[[dict[str, Any]], None], code: int, reason: str, doctor: Callable[..., Said]
) -> None:
    found, said = doctor(f"--model.engine={__name__}.Oracle", change=change)
    assert found == code
    assert reason in said


@pytest.mark.parametrize(
    ("setting", "probe", "reason"),
    [
        ("--model.policy.coordinates=pixels", 48, "thousandths (model.policy.coordinates=thousandths)"),
        ("--model.policy.coordinates=unit", 48, "thousandths (model.policy.coordinates=thousandths)"),
        ("--model.max_completion_length=20", 0, "max_completion_length=20 truncates 9 of 62 correct answers"),
        (f"--model.engine={__name__}.Babbler", 48, "answers has the required format"),
        ("--gpu_memory=1", 0, "GB of GPU memory are needed, and 1.0 are available; try"),
        (
            f"--model.rewards={{talk: {PAYS_FOR_GARBAGE}}}",
            0,
            "garbage earns 1.000 and the ground truth 0.000",
        ),
    ],
)
def test_faults_of_the_settings_are_found(setting: str, probe: int, reason: str, doctor: Callable[..., Said]) -> None:
    code, said = doctor(setting, f"--probe={probe}")
    assert code == 1
    assert reason in said.partition("problem:")[2]


def pays_for_garbage(completion: str, **_: Any) -> float:
    return float(completion == GARBAGE)


@pytest.mark.slow
def test_solutions_in_another_frame_are_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_jsonl(tmp_path / "files", 40, size=(56, 56))  # in pixels
    config = ["--config", "quickstart", f"--run_dir={tmp_path}/run", CSV_ONLY]
    files = f"{{train: {folder}/train.jsonl, val: {folder}/val.jsonl}}"
    plain = ["--task.template=Detect {query}", "--trainer.callbacks=null"]
    wrong = f"--data={{class_path: JsonlData, init_args: {files}}}"
    assert main(["doctor", *config, wrong, *plain]) == 1
    assert "(data.coordinates=pixels)" in " ".join(capsys.readouterr().out.split())
    right = f"--data={{class_path: JsonlData, init_args: {files[:-1]}, coordinates: pixels}}}}"
    assert main(["doctor", *config, right, *plain]) == 0


def test_a_wrong_frame_is_found_without_asking_the_model(doctor: Callable[..., Said]) -> None:
    code, said = doctor("--model.policy.coordinates=unit", "--probe=0")
    assert code == 1
    assert "coordinates=unit, but a qwen2_vl was trained with thousandths" in said


def test_images_smaller_than_a_patch_are_found(doctor: Callable[..., Said], tmp_path: Path) -> None:
    def shrink(content: dict[str, Any]) -> None:
        for entry in content["images"]:
            with Image.open(tmp_path / "images" / entry["file_name"]) as image:
                image.resize((20, 20)).save(tmp_path / "images" / entry["file_name"])
            entry["width"] = entry["height"] = 20
        for entry in content["annotations"]:
            entry["bbox"] = [value * 20 / 56 for value in entry["bbox"]]

    code, said = doctor(change=shrink)
    assert code == 1
    assert "smaller than a patch of 28 x 28 pixels, e.g. 20 x 20" in said


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [(torch.optim.AdamW, 8), (torch.optim.SGD, 0), (torch.optim.Adafactor, 2 * 4 / 512)],
)
def test_bytes_of_an_optimizer_are_measured(optimizer: Any, expected: float) -> None:
    class Module:
        @staticmethod
        def optimizer_callable(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
            return optimizer(parameters, lr=0.1)

    assert optimizer_bytes(Module()) == pytest.approx(expected, abs=1e-3)  # type: ignore[arg-type]
