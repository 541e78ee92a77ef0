"""Hostile content of a run's folder never acts in the page; broken files are named and left out."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.helpers import ROOT
from tests.helpers.run_folders import HOSTILE, completion, report, write_lines, write_run
from vrft.callbacks.transcripts import append_json_lines


class Tags(HTMLParser):
    """Collects the elements of a page as a browser's parser finds them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_hostile_text_stays_text_and_only_the_pages_own_script_may_run(tmp_path: Path) -> None:
    page, data = report(write_run(tmp_path / "run"))
    tags = Tags()
    tags.feed(page)
    names = [tag for tag, _ in tags.found]
    assert names.count("script") == 3
    assert "img" not in names
    assert "<!--" not in page.split("</style>")[1]
    assert data["groups"][0]["answers"][0]["completion"] == HOSTILE  # the text is complete
    policy = next(attrs["content"] for tag, attrs in tags.found if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    script = re.search(r'<script type="module">(.*?)</script>', page, re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_the_page_is_self_contained(tmp_path: Path) -> None:
    page, _ = report(write_run(tmp_path / "run"))
    tags = Tags()
    tags.feed(page)
    links = [value for _, attrs in tags.found for name, value in attrs.items() if name in ("src", "href")]
    assert links == ["data:,", "#main"]


def test_the_script_never_turns_text_into_markup() -> None:
    scripts = list((ROOT / "vrft" / "report").glob("*.js"))
    assert scripts
    for script in scripts:
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", script.read_text()
        )


@pytest.mark.parametrize(
    "name",
    [
        "../config.yaml",
        "/etc/passwd",
        "0123456789abcdef.jpg\n",
        "x" * 5000,
        "0123456789abcdef.png",
        "fedcba9876543210.jpg",
    ],
)
def test_names_of_pictures_stay_in_their_folder(tmp_path: Path, name: str) -> None:
    run = tmp_path / "run"
    (run / "pictures").mkdir(parents=True)
    (run / "pictures" / "fedcba9876543210.jpg").write_text("<svg onload='window.acted = 1'>")
    write_lines(run / "transcripts.jsonl", [completion(1, 0, g, image=name) for g in range(2)])
    page, data = report(run)
    assert 'id="pictures">{}<' in page
    assert data["problems"] == ["missing or broken: 1 of 1 picture"]


def test_secrets_in_a_config_are_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789")
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("api_key: abc\nurl: https://me:pw@host\nelsewhere: hf_0123456789\n")
    page, _ = report(run)
    assert not re.search(r"abc|me:pw|hf_0123456789", page.split('id="data"')[1].split("</script>")[0])


def test_lines_that_cannot_be_read_are_left_out_and_counted(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    good = [json.dumps(completion(1, 0, g)) for g in range(2)]
    bad = [
        "[" * 100_000,
        '{"rollout": "many"}',
        json.dumps(completion(1, 0, 2, answer=[[1, 2], "x", None])),
        json.dumps(completion(1, 0, 2, reward=1e300)),
        json.dumps(completion(1, 0, 2)).replace("0.5", "NaN"),
        json.dumps(completion(1, 0, 2, completion="x" * 1_100_000)),
        "\x00\xff",
        good[0][:-20],  # left by a killed run
    ]
    (run / "transcripts.jsonl").write_text("\n".join([*good, *bad]))
    _, data = report(run)
    assert [len(group["answers"]) for group in data["groups"]] == [2]
    assert data["problems"] == ["transcripts.jsonl: 8 lines can't be read and are left out"]


@pytest.mark.parametrize(("content", "expected"), [(b"", 1), (b'{"a": 1}\n', 2), (b'{"a": 1}\n{"a', 3)])
def test_new_lines_are_not_joined_to_a_partial_one(content: bytes, expected: int, tmp_path: Path) -> None:
    path = tmp_path / "transcripts.jsonl"
    path.write_bytes(content)
    append_json_lines(path, [{"b": 2}])
    append_json_lines(path, [])
    found = path.read_bytes().splitlines()
    assert len(found) == expected
    assert found[-1] == b'{"b": 2}'


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        pytest.param("config.yaml", "a: [", "config.yaml is not YAML", id="no-yaml"),
        pytest.param("config.yaml", "[" * 5000, "config.yaml is not YAML", id="deep-yaml"),
        pytest.param("config.yaml", "x" * 1_100_000, "config.yaml is larger than", id="huge-config"),
        pytest.param("summary.json", "[1]", "summary.json can't be read", id="a-list"),
        pytest.param("summary.json", '{"base": ', "summary.json can't be read", id="half"),
        pytest.param(
            "logs/version_0/metrics.csv", "step,train/x\nnan,1\n", "version_0/metrics.csv: 1 line can't", id="step"
        ),
        pytest.param("evaluation/val-3/answers.jsonl", "{}\n", "answers.jsonl: 1 line can't", id="answers"),
        pytest.param(
            "evaluation/val-3/coco_per_category.csv", "c,AP\na,x\n", "coco_per_category.csv can't", id="table"
        ),
        pytest.param(
            "evaluation/val-3/coco_calibration.csv",
            "low,high,confidence,accuracy,boxes\n0,0.1,0.05,0.5,3\n0.1,0.2,0.1,nan,3\n",
            "coco_calibration.csv can't",
            id="calibration",
        ),
        pytest.param(
            "evaluation/test-3/inference_scaling.json",
            '{"questions": 2, "curves": {"pass": {"1": [0.5, 0.1, 1e9]}}}',
            "test-3/inference_scaling.json can't",
            id="scaling",
        ),
        pytest.param("evaluation/val-3/warnings_X.json", "[1]", "val-3/warnings_X.json can't", id="evaluator"),
        pytest.param("faults.jsonl", "1\n", "faults.jsonl: 1 line can't", id="faults"),
        pytest.param("warnings.jsonl", "{", "warnings.jsonl: 1 line can't", id="warnings"),
    ],
)
def test_a_broken_file_is_named_and_the_rest_is_shown(tmp_path: Path, file: str, content: str, problem: str) -> None:
    run = tmp_path / "run"
    (run / file).parent.mkdir(parents=True)
    write_lines(run / "transcripts.jsonl", [completion(1, 0, g) for g in range(2)])
    (run / file).write_text(content)
    _, data = report(run)
    assert len(data["groups"]) == 1
    assert len(data["problems"]) == 1
    assert problem in data["problems"][0]


def test_each_evaluator_shows_its_first_and_last_calibration(tmp_path: Path) -> None:
    for step, names in ((0, ("coco", "lvis")), (3, ("coco", "lvis")), (6, ("coco",))):
        folder = tmp_path / "evaluation" / f"val-{step}"
        folder.mkdir(parents=True)
        for name in names:
            (folder / f"{name}_calibration.csv").write_text(f"confidence,accuracy,boxes\n0.5,0.5,{step + 1}\n")
    _, data = report(tmp_path)
    shown = [(table["evaluation"], table["bins"][0]["boxes"]) for table in data["calibration"]]
    assert shown == [("val-0, coco", 1), ("val-6, coco", 7), ("val-0, lvis", 1), ("val-3, lvis", 4)]


@pytest.mark.parametrize(
    "value", ["!!bool foo", "!!int x", "!!float x", "!!timestamp x", "!!binary ä", "0x" + "f" * 5000, "2026-13-99"]
)
def test_values_of_a_config_are_text(value: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(f"seed_everything: {value}\nmodel: {{class_path: vrft.RFT}}\n")
    _, data = report(tmp_path)
    assert data["facts"]["method"] == "RFT"
    assert data["problems"] == []


@pytest.mark.parametrize(
    "summary", ['{"base": {"mAP": 1e999}}', '{"tuned": {"mAP": "x"}, "base": 3}', '{"seconds": NaN}']
)
def test_values_that_are_not_numbers_are_left_out(tmp_path: Path, summary: str) -> None:
    (tmp_path / "summary.json").write_text(summary)
    _, data = report(tmp_path)
    assert data["scores"] == []
    assert data["seconds"] is None


def test_a_running_run_shows_its_data_so_far(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    metrics = run / "logs" / "version_0" / "metrics.csv"
    metrics.write_text(metrics.read_text() + "0,40,0.5,2.0,1")  # a partial line
    _, data = report(run)
    assert not data["ended"]
    assert [score["tuned"] for score in data["scores"] if score["name"] == "mAP"] == [0.3]
    assert max(x for x, _ in data["series"]["train/reward"]) == 40


@pytest.mark.parametrize(("rollouts", "ended"), [(40, True), (30, False)])
def test_a_resumed_run_has_not_ended(rollouts: int, ended: bool, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")  # has 40 rollouts
    (run / "summary.json").write_text(json.dumps({"base": {"mAP": 0.1}, "tuned": {"mAP": 0.3}, "rollouts": rollouts}))
    assert report(run)[1]["ended"] == ended
