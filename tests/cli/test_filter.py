"""`python -m vrft filter`, and training on what it keeps."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.helpers import CSV_ONLY, UNJUDGED
from tests.helpers.finished import short_fit
from vrft.__main__ import main
from vrft.callbacks import filtering
from vrft.data.difficulty import Difficulty
from vrft.data.image_folders import ImageFolders
from vrft.data.record import Record
from vrft.data.success_rates import Entry, Header, Rule, kept_records, record_ids, write_rates
from vrft.errors import ConfigurationError
from vrft.rewards import DetectionIoU
from vrft.types import Detection, PromptBatch

Run = Callable[..., int]


def lines_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "success_rates.jsonl").read_text().splitlines()]


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the indices of the samples that were asked about since."""
    asked: list[int] = []
    original = filtering.sample_answers

    def sample_answers(module: Any, batch: PromptBatch, *settings: Any) -> Any:
        asked.extend(sample.index for sample in batch.samples)
        return original(module, batch, *settings)

    monkeypatch.setattr(filtering, "sample_answers", sample_answers)
    return asked


@pytest.mark.slow
def test_a_filter_continues_keeps_a_band_and_a_run_trains_on_it(
    tmp_path: Path, sampled: list[int], capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    def run(name: str, *more: str) -> int:
        command = ["filter", *short_fit(tmp_path, CSV_ONLY)[1:], "--reward=iou", "--samples=3", "--success=0.1"]
        return main([*command, f"--run_dir={tmp_path}/{name}", *more])

    assert run("whole", "--data.eval_batch_size=32") == 0
    head, *lines = lines_of(tmp_path / "whole")
    number = len(lines)
    assert head["samples"] == number == len(sampled) > 12
    assert head["rule"] == {"reward": "iou", "success": 0.1, "lowest": 0.1, "highest": 0.9}
    assert (head["asked"]["seed"], head["asked"]["samples"]) == (0, 3)
    for line in lines:
        assert line["rate"] == pytest.approx(sum(score >= 0.1 for score in line["scores"]) / 3)
        assert line["kept"] == (line["rate"] in (1 / 3, 2 / 3))
    kept = [line for line in lines if line["kept"]]
    assert 1 < len(kept) < number
    shown = capsys.readouterr().out
    assert f"kept: {len(kept)} of {number}; left out: " in shown

    # Interrupted after one batch, in other batches, and continued with another band, which samples nothing anew
    sampled.clear()
    assert run("part", "--data.eval_batch_size=7", "--trainer.limit_predict_batches=1") == 2
    assert f"filter: {number - 7} of {number} training samples have no scores yet" in capsys.readouterr().err
    assert run("part", "--data.eval_batch_size=7", "--lowest=1", "--highest=1") == 0
    assert sampled == [*range(number)]
    assert "filter: 7 of them were answered before" in caplog.text
    for line, other in zip(lines, lines_of(tmp_path / "part")[1:], strict=True):
        expected = {"scores": pytest.approx(line["scores"], abs=1e-4), "kept": line["rate"] == 1}
        assert other == line | expected
    assert lines_of(tmp_path / "part")[0]["asked"] == head["asked"]
    assert [*(tmp_path / "part").glob("success_rates-*")] == []

    # Training asks what is kept, and nothing else
    file = tmp_path / "whole" / "success_rates.jsonl"
    fit = short_fit(tmp_path, CSV_ONLY, UNJUDGED, f"--data.keep={file}", f"--data.batch_size={len(kept)}")
    assert main([*fit, "--trainer.max_steps=1", "--transcripts.every_n_rollouts=1"]) == 0
    assert f"data.keep leaves out {number - len(kept)} of {number} training records: " in caplog.text
    rows = (tmp_path / "run" / "transcripts.jsonl").read_text().splitlines()
    asked = {(row["image_id"], row["query"]) for row in map(json.loads, rows)}
    assert asked == {(line["image_id"], line["query"]) for line in kept}


def test_a_filter_needs_a_reward_that_tells_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["filter", *short_fit(tmp_path, CSV_ONLY)[1:]]) == 2
    said = "reward: expected one of model.rewards, iou, confidence, format, which tells success; got none"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"reward": "giou"}, "reward: expected one of model.rewards, iou, which tells success; got giou"),
        ({"lowest": 0.8, "highest": 0.2}, "lowest, highest: expected 0 <= lowest <= highest <= 1, got 0.8 and 0.2"),
        ({"highest": float("nan")}, "lowest, highest: expected 0 <= lowest <= highest <= 1, got 0.1 and nan"),
        ({"success": float("nan")}, "success: expected above 0 and at most 1, the bounds of iou, got nan"),
        ({"success": 50}, "success: expected above 0 and at most 1, the bounds of iou, got 50"),
        ({"samples": 0}, "samples: expected at least 1, got 0"),
    ],
    ids=["unknown", "band", "nan", "success", "percent", "samples"],
)
def test_a_filter_without_a_meaning_is_refused(settings: dict[str, Any], said: str) -> None:
    samples = settings.pop("samples", 4)
    module: Any = SimpleNamespace(rewards={"iou": DetectionIoU()})
    with pytest.raises(ConfigurationError, match=re.escape(said)):
        filtering.Filter(samples, Rule(**{"reward": "iou"} | settings)).check(module)


def test_a_filter_tells_success_as_sampling_by_difficulty_does() -> None:
    difficulty = Difficulty("iou", success=0.3)
    assert filtering.rule_of(difficulty, None, None, 0, 1) == Rule("iou", 0.3, 0, 1)
    assert filtering.rule_of(difficulty, "iou", None, 0, 1) == Rule("iou", 0.3, 0, 1)
    assert filtering.rule_of(difficulty, None, 0.7, 0, 1) == Rule("iou", 0.7, 0, 1)
    assert filtering.rule_of(difficulty, "format", None, 0, 1) == Rule("format", 0.5, 0, 1)
    assert filtering.rule_of(None, None, None, 0, 1) == Rule("", 0.5, 0, 1)


def records(label: str = "cat", folder: str = "a") -> list[Record]:
    box = (Detection((1.0, 2.0, 3.0, 4.0), label),)
    names = ("1.png", "2.png", "2.png", "3.png")
    return [
        Record((Path(folder, name),), f"train.json[{i}]", name, "cat" if i < 3 else "dog", box)
        for i, name in enumerate(names)
    ]


def folders(name: str) -> ImageFolders:
    return ImageFolders("file_name", (Path(name),))


ASKED = {"task": "DetectionTask", "template": None}


def write(path: Path, rates: list[float | None]) -> None:
    rule = Rule("iou")
    entries = [
        Entry(name, i, "", "", "", [], rate, rule.keeps(rate))
        for i, (name, rate) in enumerate(zip(record_ids(records(), folders("a")), rates, strict=True))
    ]
    write_rates(path, Header(ASKED, rule, len(entries)), entries)


def test_rates_belong_to_images_questions_and_labels_wherever_the_files_lie(tmp_path: Path) -> None:
    path = tmp_path / "rates.jsonl"
    write(path, [0.0, 0.5, 1.0, None])
    moved = records(folder="elsewhere")
    kept, said = kept_records(moved, path, ASKED, folders("elsewhere"))
    assert kept == [moved[1], moved[3]]  # of two equal records, each has its own rate
    assert said == "data.keep leaves out 2 of 4 training records: 1 below 0.1 and 1 above 0.9"
    with pytest.warns(UserWarning, match="made with task 'DetectionTask', and the run has 'CountTask'"):
        kept_records(moved[1:], path, ASKED | {"task": "CountTask"}, folders("elsewhere"))
    write(path, [0.5, 0.5, 0.5, 0.0])
    with pytest.warns(UserWarning, match="leaves out every training sample of 'dog'"):
        kept_records(moved, path, ASKED, folders("elsewhere"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no such file"),
        ("", "is empty; expected a file that"),
        ('{"sample": 1}\n', "line 1: .*; expected a file that"),
        ("{broken", "line 1: "),
        ("head+x", "line 2: "),
        ("head", "has 0 samples, and its first line says 4; is it incomplete"),
        ("none", r"keeps none of 4 training samples: 4 below 0.1 and 0 above 0.9"),
        ("labels", r"lists no rate of 4 of 4 training samples, e\.g\. train\.json\[0\] \(query 'cat'\)"),
    ],
)
def test_files_that_do_not_belong_to_the_data_are_refused(content: str | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "rates.jsonl"
    write(path, [0.0] * 4)
    if content is None:
        path.unlink()
    elif content.startswith("head"):
        path.write_text(path.read_text().splitlines()[0] + content[4:].replace("+", "\n"))
    elif content not in ("none", "labels"):
        path.write_text(content)
    with pytest.raises(ConfigurationError, match=rf"data\.keep: .*{said}"):
        kept_records(records("dog" if content == "labels" else "cat"), path, ASKED, folders("a"))


def test_a_filter_that_would_be_given_samples_that_another_kept_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["filter", *short_fit(tmp_path, CSV_ONLY)[1:], "--reward=iou", "--data.keep=rates.jsonl"]
    assert main(command) == 2
    assert "data.keep: expected null with filter" in capsys.readouterr().err


def test_ids_depend_neither_on_other_records_nor_on_where_the_data_lies() -> None:
    def found(root: str, *names: str, given: ImageFolders | None = None) -> dict[str, str]:
        some = [Record((Path(root, name),), name, i, "", "cat") for i, name in enumerate(names)]  # ids are positions
        return dict(zip(names, record_ids(some, given), strict=True))

    names = ("deep/cat/1.png", "deep/cat/2.png", "cat/2.png")
    every = found("a", *names, given=folders("a"))
    assert len({*every.values()}) == 3
    for name in names:
        assert found("elsewhere", name, given=folders("elsewhere")) == {name: every[name]}
    assert found("a", names[0]) == found("elsewhere", names[0])
    with pytest.raises(ConfigurationError, match=r"deep/cat/2\.png and cat/2\.png: images of one name, cat/2\.png, in"):
        found("a", *names)
