"""`python -m vrft report`: what is read, what is left out, and that nothing in a run's folder can act in the page."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.helpers import CSV_ONLY, ROOT
from vrft.__main__ import main
from vrft.callbacks.transcripts import append
from vrft.report.held_out import choose
from vrft.report.lines import HeldOut
from vrft.report.metrics import MOST, read_metrics, thin
from vrft.run_dir import RunDir
from vrft.utils.thumbnails import SIDE, save_thumbnail

HOSTILE = (
    "</script><!--<script>window.acted = 1</script><img src=x onerror='window.acted = 1'> {{data}} \u2028\x00'\"&amp;"
)


def completion(rollout: int, sample: int, generation: int, **more: Any) -> dict[str, Any]:
    """A line of transcripts.jsonl."""
    reward = ((rollout * 7 + sample * 3 + generation) % 10) / 5
    box = [[4.0, 4.0, 20.0 + generation, 20.0], "cat", 0.5]
    line = {"rollout": rollout, "sample": sample, "image_id": sample, "query": f"category {sample % 3}"}
    line |= {"generation": generation, "completion": "<think>so</think><answer>…</answer>", "reasoning": "so"}
    line |= {"valid": True, "answer": [box], "target": [[[5.0, 5.0, 25.0, 25.0], "cat", 1.0]]}
    line |= {"rewards": {"iou": reward - 1, "format": 1.0}, "reward": reward, "advantage": reward - 0.9}
    return line | {"task": "DetectionTask", "image": None, "size": [40, 40]} | more


def held_out(sample: int, score: float | None, **more: Any) -> dict[str, Any]:
    """A line of an evaluation's answers.jsonl."""
    line = completion(0, sample, 0)
    names = ("sample", "image_id", "query", "completion", "reasoning", "valid", "answer", "target", "image", "size")
    return {name: line[name] for name in names} | {"score": score, "reward": 1.0} | more


def write_run(run: Path, groups: int = 30, generations: int = 4) -> Path:
    """A run's folder as `fit` leaves it, hostile in every text."""
    run.mkdir(exist_ok=True)
    images = [save_thumbnail(Image.new("RGB", (64, 48), (40 * i, 90, 120)), run / "pictures") for i in range(6)]
    lines = [
        completion(1 + n // 2, n % 11, g, image=images[n % 6], size=[64, 48])
        for n in range(groups)
        for g in range(generations)
    ]
    far = [[[-1e12, 1e12, 1e12, -1e12], HOSTILE, 1e12]]
    lines[generations] |= {"answer": far, "target": far, "size": [0, 2**53], "reward": -1e12, "advantage": 1e12}
    lines[0] |= {"completion": HOSTILE, "reasoning": HOSTILE, "valid": False, "answer": None}
    for line in lines[-generations:]:
        line |= {"query": HOSTILE, "task": "OtherTask", "target": HOSTILE}
    lines[-1] |= {"query": HOSTILE, "task": "OtherTask", "rewards": {HOSTILE: 1.0}}
    write_lines(run / "transcripts.jsonl", lines)
    for step, gain in ((0, 0.0), (40, 0.05)):
        folder = run / "evaluation" / f"val-{step}"
        folder.mkdir(parents=True)
        write_lines(
            folder / "answers.jsonl", [held_out(n, n / 50 + gain * (n - 10), image=images[n % 6]) for n in range(20)]
        )
        (folder / "coco_per_category.csv").write_text(f'category,AP\ncat,{0.1 + gain}\n"{HOSTILE[:40]}",0.2\n')
    logs = run / "logs" / "version_0"
    logs.mkdir(parents=True)
    header = "epoch,step,time/rollout,train/reward,train/reward/iou,train/kl,val/reward,val/coco/AP\n"
    steps = [f"0,{i},0.5,{i / 20},{(-1) ** i * 1e99},0.01,,\n" for i in range(40)]
    rows = ["0,0,,,,,1.0,0.1\n", *steps, "0,39,,,,,2.0,0.3\n"]
    (logs / "metrics.csv").write_text(header + "".join(rows))
    (run / "config.yaml").write_text(
        f"seed_everything: 3\nmodel: {{class_path: vrft.RFT}}\nnote: {json.dumps(HOSTILE)}\n"
    )
    (run / "warnings.jsonl").write_text(
        json.dumps({"rollout": 7, "step": 7, "guard": "entropy", "message": HOSTILE}) + "\n"
    )
    (run / "faults-0.jsonl").write_text(json.dumps(completion(9, 2, 0)) + "\n")
    return run


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def report(run: Path) -> tuple[str, dict[str, Any]]:
    """The page that the command writes, and the data in it."""
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    return page, json.loads(re.search(r'id="data">(.*?)</script>', page)[1])  # type: ignore[index]


# ------------------------------------------------------------------------------------------------------- the command


def test_it_prints_where_the_report_is_and_opens_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    run = write_run(tmp_path / "a run")
    assert main(["report", str(run), "--open"]) == 0
    assert capsys.readouterr().out == f"report: {run / 'report.html'}\n"
    assert opened == [(run / "report.html").resolve().as_uri()]
    assert not list(run.glob("*.partial"))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        pytest.param(lambda path: None, "no such folder", id="nothing-there"),
        pytest.param(lambda path: path.mkdir(), "holds no run", id="empty-folder"),
        pytest.param(lambda path: path.write_text(""), "no such folder", id="a-file"),
    ],
)
def test_what_is_no_run_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Callable[[Path], None], said: str
) -> None:
    make(tmp_path / "run")
    assert main(["report", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_it_needs_no_torch(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    command = [sys.executable, "-X", "importtime", "-m", "vrft", "report", str(run)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    modules = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "msgspec" in modules
    assert not modules & {"torch", "lightning", "transformers", "numpy"}


def test_fit_keeps_images_and_answers_and_writes_the_report(
    quick_fit: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--transcripts.every_n_rollouts=1", "--trainer.val_check_interval=1", "--model.optimizer.lr=0.01")
    assert main(quick_fit(CSV_ONLY, *more)) == 0
    run = tmp_path / "run"
    assert f"report: {run / 'report.html'}\n" in capsys.readouterr().out
    _, data = report(run)
    assert [len(group["answers"]) for group in data["groups"]] == [8] * 8
    assert {group["task"] for group in data["groups"]} == {"DetectionTask"}
    assert all((run / "pictures" / group["image"]).exists() for group in data["groups"])
    assert len(data["held_out"]["answers"]) > 0
    for entry in data["held_out"]["answers"]:
        assert (run / "pictures" / entry["image"]).exists()
        assert entry["first"] is not None
    answers = [json.loads(line) for line in (run / "evaluation" / "val-2" / "answers.jsonl").read_text().splitlines()]
    scores = {row["name"]: row for row in data["scores"]}
    mean = sum(answer["score"] for answer in answers) / len(answers)
    assert mean == pytest.approx(scores["mIoU"]["tuned"], abs=1e-5)  # per image is the evaluator's own number
    assert sum(answer["reward"] for answer in answers) / len(answers) == pytest.approx(
        scores["reward"]["tuned"], abs=1e-5
    )
    assert [point[0] for point in data["series"]["val/reward"]] == [0, 1, 2]  # the base, and after each rollout
    assert [point[0] for point in data["series"]["train/reward"]] == [1, 2]
    assert data["problems"] == []
    assert data["rollouts"] == 2
    assert data["ended"]
    for command in ("validate", "test"):  # what is asked of a checkpoint later is no base, and no rollout
        assert main([command, f"--config={run}/config.yaml", f"--ckpt_path={run}/checkpoints/last.ckpt"]) == 0
        later = report(run)[1]
        assert later["scores"] == data["scores"]
        assert later["series"]["train/reward"] == data["series"]["train/reward"]
    assert (run / "logs" / "version_2" / "metrics.csv").exists()


# -------------------------------------------------------------------------------------------------------- safety


class Tags(HTMLParser):
    """The elements of a page, as a browser's parser finds them."""

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
    assert data["groups"][0]["answers"][0]["completion"] == HOSTILE  # nothing is lost
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


def test_the_script_never_makes_markup_of_text() -> None:
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
def test_names_of_pictures_lead_nowhere_else(tmp_path: Path, name: str) -> None:
    run = tmp_path / "run"
    (run / "pictures").mkdir(parents=True)
    (run / "pictures" / "fedcba9876543210.jpg").write_text("<svg onload='window.acted = 1'>")
    write_lines(run / "transcripts.jsonl", [completion(1, 0, g, image=name) for g in range(2)])
    page, data = report(run)
    assert 'id="pictures">{}<' in page
    assert data["problems"] == ["1 of 1 pictures are missing or broken"]


def test_secrets_in_a_config_are_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789")
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("api_key: abc\nurl: https://me:pw@host\nelsewhere: hf_0123456789\n")
    page, _ = report(run)
    assert not re.search(r"abc|me:pw|hf_0123456789", page.split('id="data"')[1].split("</script>")[0])


# ------------------------------------------------------------------------------------------------------ broken runs


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
        good[0][:-20],  # a killed run
    ]
    (run / "transcripts.jsonl").write_text("\n".join([*good, *bad]))
    _, data = report(run)
    assert [len(group["answers"]) for group in data["groups"]] == [2]
    assert data["problems"] == ["transcripts.jsonl: 8 lines can't be read and are left out"]


@pytest.mark.parametrize(("content", "expected"), [(b"", 1), (b'{"a": 1}\n', 2), (b'{"a": 1}\n{"a', 3)])
def test_what_follows_half_a_line_is_a_line_of_its_own(content: bytes, expected: int, tmp_path: Path) -> None:
    path = tmp_path / "transcripts.jsonl"
    path.write_bytes(content)
    append(path, [{"b": 2}])
    append(path, [])
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
def test_numbers_that_are_none_are_left_out(tmp_path: Path, summary: str) -> None:
    (tmp_path / "summary.json").write_text(summary)
    _, data = report(tmp_path)
    assert data["scores"] == []
    assert data["seconds"] is None


def test_a_run_that_is_going_on_shows_what_there_is(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    metrics = run / "logs" / "version_0" / "metrics.csv"
    metrics.write_text(metrics.read_text() + "0,40,0.5,2.0,1")  # half a line
    _, data = report(run)
    assert not data["ended"]
    assert [score["tuned"] for score in data["scores"] if score["name"] == "mAP"] == [0.3]
    assert max(x for x, _ in data["series"]["train/reward"]) == 40


@pytest.mark.parametrize(("rollouts", "ended"), [(40, True), (30, False)])
def test_a_run_that_is_continued_has_not_ended(rollouts: int, ended: bool, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")  # of 40 rollouts
    (run / "summary.json").write_text(json.dumps({"base": {"mAP": 0.1}, "tuned": {"mAP": 0.3}, "rollouts": rollouts}))
    assert report(run)[1]["ended"] == ended


# --------------------------------------------------------------------------------------------------- what is shown


def test_a_continued_run_counts_what_it_did_again_once(tmp_path: Path) -> None:
    header = "epoch,step,train/reward,val/reward\n"
    for version, rows in ((0, ["0,0,,1.0", *(f"0,{i},1.0," for i in range(30)), "0,29,,1.5"]), (1, ["0,20,2.0,"])):
        folder = tmp_path / "logs" / f"version_{version}"
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text(header + "".join(f"{row}\n" for row in rows))
    write_lines(
        tmp_path / "transcripts.jsonl",
        [completion(rollout, 0, g) for rollout in (10, 20, 30, 21) for g in range(2)],
    )
    series = read_metrics(RunDir(tmp_path), [])
    assert series["train/reward"] == [*((i, 1.0) for i in range(1, 21)), (21, 2.0)]
    assert series["val/reward"] == [(0, 1.0)]  # the other one came after a rollout that was done again
    _, data = report(tmp_path)
    assert [group["rollout"] for group in data["groups"]] == [10, 20, 21]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        pytest.param(["0,,1.0", "0,1.0,", "1,1.0,", "2,,2.0"], [(0, 1.0), (2, 2.0)], id="base-and-end"),
        pytest.param(["0,,1.0", "0,1.0,", "0,,2.0", "1,1.0,"], [(0, 1.0), (1, 2.0)], id="within-training"),
        pytest.param(["4,1.0,", "5,,2.0"], [(5, 2.0)], id="continued"),
        pytest.param(["5,,2.0"], [(5, 2.0)], id="nothing-left-to-train"),
    ],
)
def test_evaluations_stand_at_the_rollouts_before_them(
    rows: list[str], expected: list[tuple[int, float]], tmp_path: Path
) -> None:
    folder = tmp_path / "logs" / "version_0"
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text("step,train/reward,val/reward\n" + "".join(f"{row}\n" for row in rows))
    assert read_metrics(RunDir(tmp_path), [])["val/reward"] == expected


def test_long_curves_are_means_of_neighbours() -> None:
    points = [(i, float(i % 2)) for i in range(4 * MOST)]
    thinned = thin(points)
    assert len(thinned) == MOST
    assert {value for _, value in thinned} == {0.5}
    assert thinned[0][0] == 1.5


def test_the_last_rollout_of_a_long_run_is_a_whole_number(tmp_path: Path) -> None:
    folder = tmp_path / "logs" / "version_0"
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text("step,train/reward\n" + "".join(f"{i},1.0\n" for i in range(2 * MOST)))
    _, data = report(tmp_path)
    assert data["rollouts"] == 2 * MOST
    assert len(data["series"]["train/reward"]) == MOST


def test_a_prompt_twice_in_a_rollout_is_two_groups(tmp_path: Path) -> None:
    write_lines(tmp_path / "transcripts.jsonl", [completion(1, 0, g) for _ in range(2) for g in range(4)])
    _, data = report(tmp_path)
    assert [len(group["answers"]) for group in data["groups"]] == [4, 4]


def test_of_long_runs_evenly_spaced_rollouts_are_shown(tmp_path: Path) -> None:
    write_lines(tmp_path / "transcripts.jsonl", [completion(1 + n, n, g) for n in range(1501) for g in range(8)])
    _, data = report(tmp_path)
    rollouts = [group["rollout"] for group in data["groups"]]
    assert sum(len(group["answers"]) for group in data["groups"]) <= 5000
    assert data["all_groups"] == 1501
    assert rollouts == [*range(1, 1501, 3), 1501]


def test_the_first_and_the_last_of_the_same_prompt_are_paired(tmp_path: Path) -> None:
    order = [(1, 0), (2, 1), (3, 0), (4, 1), (9, 0)]
    write_lines(
        tmp_path / "transcripts.jsonl", [completion(rollout, sample, g) for rollout, sample in order for g in (0, 1)]
    )
    _, data = report(tmp_path)
    pairs = [[data["groups"][place]["rollout"] for place in pair] for pair in data["pairs"]]
    assert pairs == [[1, 9], [2, 4]]


def answers(scores: dict[int, float | None], images: int = 1000) -> dict[int, HeldOut]:
    return {n: HeldOut(**held_out(n, score, image_id=n % images)) for n, score in scores.items()}


def test_worst_and_most_improved_are_chosen_by_score() -> None:
    first = answers(dict.fromkeys(range(40), 0.5))
    last = answers({n: 0.5 + (n - 20) / 100 for n in range(40)} | {40: None})
    chosen = choose(first, last)
    assert chosen["improved"] == [*range(39, 27, -1)]
    assert chosen["worsened"] == [*range(12)]
    assert chosen["worst"] == [*range(12)]
    assert chosen["sample"] == [*range(0, 41, 4)]


def test_an_image_is_shown_once_however_many_questions_it_has() -> None:
    chosen = choose({}, answers({n: n / 10 for n in range(10)}, images=2))
    assert chosen["worst"] == [0, 1]
    assert chosen["improved"] == []


# ------------------------------------------------------------------------------------------------------- pictures


def test_pictures_are_kept_once_and_small(tmp_path: Path) -> None:
    image = Image.effect_noise((1600, 1200), 80).convert("RGB")
    name = save_thumbnail(image, tmp_path / "pictures")
    assert name is not None
    assert save_thumbnail(image.copy(), tmp_path / "pictures") == name
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == [name]
    with Image.open(tmp_path / "pictures" / name) as kept:
        assert kept.size == (SIDE, SIDE * 3 // 4)


def test_a_picture_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "pictures").write_text("in the way")
    with pytest.warns(UserWarning, match="images are missing"):
        assert save_thumbnail(Image.new("RGB", (8, 8)), tmp_path / "pictures") is None
