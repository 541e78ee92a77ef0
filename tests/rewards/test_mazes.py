"""Rewards of moves through a maze: nothing earns more than the truth."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from tests.helpers.answers import FRAME, sample, tagged
from vrft.errors import ConfigurationError
from vrft.mazes import MOVES, random_maze
from vrft.tasks import MazeTask
from vrft.types import Sample

TASK = MazeTask()
MAZE = "0-0:RD 0-1:RL 0-2:L 1-0:UR 1-1:RDL 1-2:DL 2-0:R 2-1:URL 2-2:UL from 0-2 to 1-2"
TRUTH = "left left down right right"


def question(query: str = MAZE, target: str = TRUTH) -> Sample:
    return replace(sample(target), query=query)


def scores(text: str, about: Sample) -> dict[str, float]:
    answer = TASK.parse(text, about, FRAME)
    found = {name: reward.score(answer, about) for name, reward in TASK.rewards().items()}
    return {name: value for name, value in found.items() if value is not None}


@pytest.mark.parametrize(
    ("answer", "moves", "legal", "target"),
    [
        pytest.param(TRUTH, 1, 1, 1, id="truth"),
        pytest.param("left left down", 0.6, 0.6, 0, id="a part of the way"),
        pytest.param(f"{TRUTH} down", 5 / 6, 1, 0, id="past the target"),
        pytest.param("left left down right down right up", 4 / 7, 1, 1, id="a detour in a maze with a circle"),
        pytest.param("left right " * 5, 0.1, 0.1, 0, id="to and fro"),
        pytest.param("left right left left down right right", 1 / 7, 1 / 7, 0, id="turned back on the way"),
        pytest.param("down left left", 0, 0, 0, id="into a wall at once"),
        pytest.param("left left left down right right", 2 / 6, 2 / 6, 0, id="into a wall later"),
        pytest.param("left left down right down", 0.8, 1, 0, id="another way without walls"),
        pytest.param("somewhere", 0, 0, 0, id="no move"),
        pytest.param("", 0, 0, 0, id="empty"),
    ],
)
def test_scores(answer: str, moves: float, legal: float, target: float) -> None:
    found = scores(tagged(answer), question())
    assert found == pytest.approx({"moves": moves, "legal": legal, "target": target, "format": 1})


def test_no_wrong_answer_earns_more_than_the_truth() -> None:
    rng = random.Random(0)
    for _ in range(40):
        maze = random_maze(rng, rng.choice([2, 3, 5]))
        right = maze.path()
        about = question(maze.text, " ".join(right))
        assert scores(TASK.target_text(about, FRAME), about) == dict.fromkeys(("moves", "legal", "target", "format"), 1)
        for _ in range(10):
            moves = [*right[: rng.randrange(len(right) + 1)], *rng.choices([*MOVES], k=rng.randrange(4))]
            found = scores(tagged(" ".join(moves)), about)
            assert all(0 <= value <= 1 for value in found.values())
            if moves != right:
                assert found["moves"] < 1
                assert found["target"] == 0


def test_a_query_that_is_no_maze_is_refused() -> None:
    about = question("cat")
    assert MazeTask().query_problem("cat")
    assert MazeTask().query_problem(MAZE) is None
    with pytest.raises(ConfigurationError, match="MazeMoves: the query is no maze: expected cells"):
        scores(tagged("left"), about)


def test_an_answer_without_moves_says_what_is_wrong() -> None:
    assert TASK.parse(tagged("go left"), question(), FRAME).problem == (
        "the answer block has other words than up, right, down and left, or too many"
    )
    assert TASK.parse(tagged(""), question(), FRAME).problem == "the answer block is empty"


def test_a_hostile_answer_takes_no_time() -> None:
    for text in ("left " * 300_000, "left," * 300_000, "<answer>" * 100_000, "l" * 1_000_000):
        assert scores(tagged(text), question())["target"] == 0
