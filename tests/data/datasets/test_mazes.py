"""Generated mazes, from the data to the report of a run."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.helpers import CSV_ONLY
from vrft.__main__ import main
from vrft.callbacks.rollout_pictures import group_picture, with_paths
from vrft.data import MazeData
from vrft.data.datasets.mazes import Mazes
from vrft.errors import ConfigurationError
from vrft.evaluators import MazeEvaluator
from vrft.evaluators.mazes import Row
from vrft.mazes import parse_maze
from vrft.policy.tiny_mazes import write_checkpoint
from vrft.types import Answer, Sample
from vrft.utils.drawing import PREDICTION, TRUTH

MAZE = "0-0:RD 0-1:L 1-0:UR 1-1:L from 0-1 to 1-1"


def sample(index: int = 0, query: str = MAZE) -> Sample:
    maze = parse_maze(query)
    return Sample(index, (maze.draw(),), index, query, " ".join(maze.path()))


def answer(value: str | None) -> Answer:
    return Answer("", "", value, True)


def test_training_mazes_depend_on_the_seed_and_held_out_ones_do_not() -> None:
    data, other = MazeData(train_size=50, smaller=[3]), MazeData(train_size=50, smaller=[3], seed=1)
    texts = [[found.train_set()[i].query for i in range(50)] for found in (data, other)]
    assert texts[0] != texts[1]
    assert texts[0] == [MazeData(train_size=50, smaller=[3]).train_set()[i].query for i in range(50)]
    assert {parse_maze(text).size for text in texts[0]} == {3, 5}
    held_out = [[found.val_set()[i].query for i in range(100)] for found in (data, other)]
    assert held_out[0] == held_out[1]
    assert {parse_maze(text).size for text in held_out[0]} == {5}


def test_a_held_out_maze_is_never_trained_on() -> None:
    everything = Mazes("x", 300, (2,))
    unwanted = {everything[0].query}
    assert unwanted <= {everything[i].query for i in range(1, 300)}  # there are few mazes of 2 x 2
    kept = Mazes("x", 300, (2,), unwanted)
    assert unwanted.isdisjoint(kept[i].query for i in range(300))


def test_training_without_any_maze_left_is_refused_before_it_starts() -> None:
    data = MazeData(size=2, val_size=400)
    with pytest.raises(ConfigurationError, match=r"data\.val_size: 48 mazes are held out.*2 cells.*data\.size"):
        data.setup("fit")
    assert parse_maze(MazeData(size=2, smaller=[3], val_size=400).train_set()[0].query).size == 3


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"size": 1}, r"data\.size: expected 2 to 16 cells on a side, got 1"),
        ({"smaller": [3, 17]}, r"data\.smaller: expected 2 to 16 cells on a side, got 17"),
        ({"train_size": 0}, r"data\.train_size: expected at least 1, got 0"),
        ({"val_size": -1}, r"data\.val_size: expected at least 1, got -1"),
    ],
)
def test_settings_without_a_meaning_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        MazeData(**settings)


@pytest.mark.parametrize(
    ("moves", "expected"),
    [
        ("left down right", Row(3, 3, 3, reached=True, valid=True)),
        ("left right left down right", Row(5, 5, 3, reached=True, valid=True)),
        ("left down down", Row(3, 2, 3, reached=False, valid=True)),
        (None, Row(0, 0, 3, reached=False, valid=False)),
    ],
)
def test_rows_of_the_evaluator(moves: str | None, expected: Row) -> None:
    assert MazeEvaluator().row(answer(moves), sample()) == expected


def test_scores_of_the_evaluator() -> None:
    rows = [MazeEvaluator().row(answer(moves), sample()) for moves in ("left down right", "left left", None)]
    rows.append(MazeEvaluator().row(answer("left right left down right"), sample()))
    assert MazeEvaluator().scores(rows) == pytest.approx(
        {
            "accuracy": 1 / 4,
            "reached": 2 / 4,
            "legal": (1 + 1 / 2 + 0 + 1) / 4,
            "valid": 3 / 4,
            "path_length": (3 + 2 + 5) / 3,
            "solved_path_length": 3,
        }
    )
    assert {*MazeEvaluator().scores([rows[2]])} == {"accuracy", "reached", "legal", "valid"}


def test_the_true_and_the_predicted_way_are_drawn() -> None:
    about = sample()
    drawn = with_paths(about.image, about, answer("left up"))
    side = drawn.width // 2
    assert drawn.getpixel((side // 2, side)) == TRUTH  # between 0-0 and 1-0
    assert drawn.getpixel((side, side // 2)) == PREDICTION  # between 0-1 and 0-0, on top of the truth
    assert with_paths(about.image, Sample(0, about.images, 0, "cat", "dog"), answer("left")) is about.image
    reward = SimpleNamespace(shape=(1, 1))
    scored: Any = SimpleNamespace(samples=[about], answers=[answer("left up")], reward=reward)
    assert group_picture(scored, [{"reward": 0.5}], 0).width > drawn.width


@pytest.mark.slow(seconds=4)
@pytest.mark.usefixtures("_no_runs")
def test_a_run_trains_on_mazes_and_reports_them(tmp_path: Path) -> None:
    """The command at the head of the config, for two steps of an untrained policy."""
    write_checkpoint(tmp_path / "untrained", layers=2)
    short = ["--trainer.max_steps=2", "--trainer.val_check_interval=2", CSV_ONLY, "--data.batch_size=2"]
    short += ["--data.val_size=2", "--model.max_completion_length=10", "--trainer.callbacks=[MazeEvaluator]"]
    run = tmp_path / "run"
    files = [f"--run_dir={run}", f"--model.policy.checkpoint={tmp_path}/untrained"]
    assert main(["fit", "--config", "tiny/mazes", *short, *files]) == 0
    lines = [json.loads(line) for line in (run / "transcripts.jsonl").read_text().splitlines()]
    assert all(parse_maze(line["query"]).path() == line["target"].split() for line in lines)
    table = (run / "evaluation" / "val-2" / "accuracy_per_length.csv").read_text().splitlines()
    assert table[0] == "moves,mazes,accuracy"
    assert lines[0]["query"] in (run / "report.html").read_text()
