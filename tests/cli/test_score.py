"""`python -m vrft score`: scores of JSON lines for every task."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.helpers.score import DETECTION, NAME, write
from vrft.__main__ import main


def tagged(answer: str) -> str:
    return f"<think>so</think><answer>{answer}</answer>"


@pytest.fixture
def score(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Return a function that scores entries and returns the written objects and the summary's lines."""

    def command(task: str, *entries: object, options: tuple[str, ...] = ()) -> tuple[list[dict[str, float]], list[str]]:
        assert main(["score", "--task", task, "--input", write(tmp_path, *entries), *options]) == 0
        written = capsys.readouterr()
        return [json.loads(line) for line in written.out.splitlines()], written.err.splitlines()

    return command


def test_an_object_per_line_and_the_means_on_standard_error(score) -> None:
    missed = DETECTION | {"completion": tagged("No Objects")}
    rows, summary = score("detection", DETECTION, missed)
    assert rows == [
        {"iou": 1.0, "confidence": pytest.approx(15.99 / 16), "format": 1.0},
        {"iou": 0.0, "confidence": 0.25, "format": 1.0},
    ]
    assert summary == [
        "2 completions, 2 of them valid",
        "iou                  0.5000",
        "confidence           0.6247",
        "format               1.0000",
    ]


def test_scores_are_written_in_full(score) -> None:
    third = DETECTION | {"completion": tagged("[{'Position': [0, 10, 500, 670], 'Confidence': 0.9}]")}
    (row,), summary = score("detection", third)
    assert row["iou"] == pytest.approx(660 / 990, abs=1e-15)
    assert summary[1] == "iou                  0.6667"


def test_empty_lines_are_skipped(score) -> None:
    rows, summary = score("classification", "", NAME, "  ", NAME, "")
    assert len(rows) == 2
    assert summary[0] == "2 completions, 2 of them valid"


def test_a_file_without_lines_has_no_means(score) -> None:
    rows, summary = score("classification", "")
    assert rows == []
    assert summary == [
        "0 completions, 0 of them valid",
        "accuracy             does not apply",
        "format               does not apply",
    ]


def test_many_lines_keep_their_order(score) -> None:
    entries = [NAME | {"completion": tagged("rose" if i % 3 else "tulip")} for i in range(600)]
    rows, _ = score("classification", *entries)
    assert [row["accuracy"] for row in rows] == [float(i % 3 > 0) for i in range(600)]


def test_a_line_may_contain_unicode_line_separators(score) -> None:
    entry = NAME | {"completion": "<think>a\u2028b\x85c\u2029</think><answer>rose</answer>"}
    rows, _ = score("classification", json.dumps(entry, ensure_ascii=False))
    assert rows == [{"accuracy": 1.0, "format": 1.0}]


def test_a_file_from_windows_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_bytes(f"{json.dumps(NAME)}\r\n{json.dumps(NAME)}\r\n".encode())
    assert main(["score", "--task", "classification", "--input", str(path)]) == 0
    assert capsys.readouterr().out.splitlines() == ['{"accuracy": 1.0, "format": 1.0}'] * 2


@pytest.mark.parametrize(
    ("task", "entry", "expected"),
    [
        pytest.param(
            "detection",
            DETECTION | {"completion": tagged("No Objects"), "solution": "<answer>No Objects</answer>"},
            {"iou": 1, "confidence": 1, "format": 1},
            id="right-no-objects",
        ),
        pytest.param(
            "detection",
            DETECTION | {"solution": "No Objects"},
            {"iou": 0, "confidence": pytest.approx(1 / 2 * 3.19 / 16), "format": 1},
            id="box-without-objects",
        ),
        pytest.param(
            "detection",
            DETECTION | {"completion": tagged("I see a cat")},
            {"iou": 0, "confidence": 0, "format": 1},
            id="unreadable-boxes",
        ),
        pytest.param(
            "detection", DETECTION | {"completion": ""}, {"iou": 0, "confidence": 0, "format": 0}, id="empty-completion"
        ),
        pytest.param(
            "multi_category_detection",
            DETECTION
            | {
                "query": "cat, dog",
                "completion": tagged("[{'Label': 'Cat', 'Position': [0, 10, 500, 1000], 'Confidence': 1}]"),
                "solution": "[{'Label': 'cat', 'Position': [0, 10, 500, 1000]}]",
            },
            {"iou": 1, "confidence": 1, "format": 1},
            id="several-categories",
        ),
        pytest.param(
            "multi_category_detection",
            DETECTION
            | {
                "query": "cat, dog",
                "completion": tagged("[{'Label': 'dog', 'Position': [0, 10, 500, 1000], 'Confidence': 1}]"),
                "solution": "[{'Label': 'cat', 'Position': [0, 10, 500, 1000]}]",
            },
            {"iou": 0, "confidence": pytest.approx(3 / 16), "format": 1},
            id="another-category",
        ),
        pytest.param(
            "grounding",
            DETECTION | {"completion": tagged("(0,0),(100,100)"), "solution": "<answer>(0,0),(100,200)</answer>"},
            {"iou": 0.5, "format": 1},
            id="grounding",
        ),
        pytest.param(
            "grounding",
            DETECTION | {"completion": tagged("(0,0),(9,9),(0,0),(9,9)"), "solution": "(0,0),(9,9)"},
            {"iou": 0, "format": 1},
            id="grounding-with-two-boxes",
        ),
        pytest.param(
            "classification",
            {"completion": tagged("Pink_Primrose."), "solution": "pink primrose"},
            {"accuracy": 1, "format": 1},
            id="class-normalised",
        ),
        pytest.param(
            "classification",
            {"completion": "rose", "solution": "<answer>rose</answer>"},
            {"accuracy": 0, "format": 0},
            id="class-without-tags",
        ),
        pytest.param(
            "counting",
            {"completion": tagged("3"), "solution": "<answer>4</answer>"},
            {"accuracy": 0, "error": 0.75, "format": 1},
            id="count",
        ),
        pytest.param(
            "counting",
            {"completion": tagged("three"), "solution": "3"},
            {"accuracy": 0, "error": 0, "format": 1},
            id="count-in-words",
        ),
        pytest.param(
            "multiple_choice",
            {"completion": tagged("(b)"), "solution": "<answer>B</answer>"},
            {"accuracy": 1, "format": 1},
            id="letter",
        ),
        pytest.param(
            "multiple_choice",
            {"completion": tagged("blue"), "solution": "B", "metadata": {"choices": ["red", "Blue"]}},
            {"accuracy": 1, "format": 1},
            id="text-of-a-choice",
        ),
    ],
)
def test_every_task(score, task: str, entry: dict[str, object], expected: dict[str, float]) -> None:
    (row,), _ = score(task, entry)
    assert row == pytest.approx(expected)


@pytest.mark.parametrize(
    ("coordinates", "box"),
    [
        pytest.param("thousandths", "[0, 500, 250, 1000]", id="thousandths"),
        pytest.param("pixels", "[0, 240, 160, 480]", id="pixels"),
        pytest.param("unit", "[0, 0.5, 0.25, 1]", id="unit"),
    ],
)
def test_coordinates(score, coordinates: str, box: str) -> None:
    solution = f"[{{'Position': {box}}}]"
    entry = DETECTION | {"completion": tagged(f'[{{"bbox_2d": {box}}}]'), "solution": solution}
    rows, _ = score("detection", entry, options=("--coordinates", coordinates))
    assert rows == [{"iou": 1.0, "confidence": pytest.approx(15 / 16), "format": 1.0}]


def test_a_box_outside_the_image_is_unreadable_in_pixels(score) -> None:
    solution = "[{'Position': [0, 0, 640, 480]}]"
    inside, outside = (f"[{{'Position': [0, 0, {x}, 480], 'Confidence': 1}}]" for x in (640, 641))
    entries = [DETECTION | {"completion": tagged(text), "solution": solution} for text in (inside, outside)]
    rows, summary = score("detection", *entries, options=("--coordinates", "pixels"))
    assert [row["iou"] for row in rows] == [1, 0]
    assert summary[0] == "2 completions, 1 of them valid"


def test_without_reasoning_the_answer_alone_is_the_format(score) -> None:
    entries = [NAME, NAME | {"completion": "<answer>rose</answer>"}]
    assert [row["format"] for row in score("classification", *entries)[0]] == [1, 0]
    assert [row["format"] for row in score("classification", *entries, options=("--no-reasoning",))[0]] == [0, 1]


def test_rewards_by_name_and_by_class_path(score) -> None:
    names = ("--rewards", "format", "vrft.rewards.PaperConfidence", "vrft.rewards.detection.DetectionF1")
    wrong = DETECTION | {"completion": tagged("[{'Position': [600, 10, 900, 1000], 'Confidence': 0.2}]")}
    rows, summary = score("detection", DETECTION, wrong, options=names)
    assert rows == [
        {"format": 1.0, "PaperConfidence": 0.9, "DetectionF1": 1.0},
        {"format": 1.0, "PaperConfidence": 0.8, "DetectionF1": 0.0},
    ]
    assert [line.split()[0] for line in summary[1:]] == ["format", "PaperConfidence", "DetectionF1"]


def test_a_users_reward_receives_the_fields_of_the_line(score, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rewards_of_mine.py").write_text(
        "from vrft.rewards import Reward\n"
        "class Mine(Reward):\n"
        "    def score(self, answer, sample):\n"
        "        assert (sample.query, sample.size) == ('cat', (640, 480))\n"
        "        return sample.metadata.get('score')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    entries = [DETECTION | {"query": "cat", "metadata": data} for data in ({"score": 0.25}, {}, {"score": 7})]
    rows, summary = score("detection", *entries, options=("--rewards", "rewards_of_mine.Mine"))
    assert rows == [{"Mine": 0.25}, {"Mine": None}, {"Mine": 1.0}]
    assert summary[1] == "Mine                 0.6250"
    sys.modules.pop("rewards_of_mine")


def test_the_output_has_only_finite_numbers(score) -> None:
    hostile = [tagged(f"[{{'Position': [0, 10, 500, 1000], 'Confidence': {c}}}]") for c in ("NaN", "1e400", "-1")]
    rows, _ = score("detection", *[DETECTION | {"completion": text} for text in [*hostile, "[" * 100_000]])
    assert [(row["iou"], row["confidence"]) for row in rows] == [(0, 0)] * 4


def test_help_names_fields_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["score", "--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    words = ["completion", "solution", "width", "height", "query", "metadata", "--task", "--rewards", "--coordinates"]
    assert [word for word in words if word not in shown] == []
    assert all(name in shown for name in ("multi_category_detection", "thousandths", "--no-reasoning"))
