from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise, product

import networkx
import pytest

from vrft.mazes import (
    MAX_MOVES,
    MOVES,
    BadMaze,
    Maze,
    drawn_path,
    name_of,
    neighbour,
    parse_maze,
    random_maze,
    read_moves,
)

SMALL = "0-0:RD 0-1:L 1-0:UR 1-1:L from 0-1 to 1-1"


def graph_of(maze: Maze) -> networkx.Graph:
    cells = product(range(maze.size), repeat=2)
    return networkx.Graph((cell, neighbour(cell, move)) for cell in cells for move in maze.moves_from(cell))


@pytest.mark.parametrize("size", [2, 3, 5, 16])
def test_a_random_maze_is_a_tree_and_its_path_the_shortest(size: int) -> None:
    for seed in range(40 // size):
        maze = random_maze(random.Random(seed), size)
        graph = graph_of(maze)
        assert networkx.is_tree(graph)
        assert len(graph) == size**2
        assert maze.walk(maze.path()) == networkx.shortest_path(graph, maze.start, maze.target)
        assert parse_maze(maze.text) == maze


@pytest.mark.parametrize(
    ("text", "cells"),
    [
        pytest.param(SMALL, "0-1 0-0 1-0 1-1", id="the only way"),
        pytest.param(
            "0-0:R 0-1:RDL 0-2:L 1-0:R 1-1:UDL 1-2:D 2-0:R 2-1:URL 2-2:UL from 1-1 to 1-2",
            "1-1 0-1 0-0 0-1 0-2 0-1 1-1 2-1 2-2 1-2",
            id="up first at the start, left before right after a step up, back from each dead end",
        ),
        pytest.param(
            "0-0:RD 0-1:RL 0-2:L 1-0:UR 1-1:DL 1-2:D 2-0:R 2-1:URL 2-2:UL from 2-1 to 0-2",
            "2-1 1-1 1-0 0-0 0-1 0-2",
            id="the target may be found before all dead ends",
        ),
        pytest.param(
            "0-0:RD 0-1:DL 0-2:D 1-0:UR 1-1:URL 1-2:UDL 2-0: 2-1: 2-2:U from 1-1 to 2-2",
            "1-1 0-1 0-0 0-1 1-1 1-2 0-2 1-2 2-2",
            id="a loop is left where another way is shorter",
        ),
    ],
)
def test_a_search_turns_clockwise_and_steps_back(text: str, cells: str) -> None:
    maze = parse_maze(text)
    assert " ".join(map(name_of, maze.search(maze.path()))) == cells


def with_loops(maze: Maze, rng: random.Random) -> Maze:
    """Return a maze without some of the walls."""
    sides = {(i // maze.size, i % maze.size): {*moves} for i, moves in enumerate(maze.open_sides)}
    for cell, (move, back) in product(sides, [("right", "left"), ("down", "up")]):
        if (other := neighbour(cell, move)) in sides and rng.random() < 0.4:
            sides[cell].add(move)
            sides[other].add(back)
    opened = tuple(tuple(move for move in MOVES if move in found) for found in sides.values())
    return replace(maze, open_sides=opened)


@pytest.mark.parametrize("loops", [False, True])
@pytest.mark.parametrize("size", [2, 3, 5])
def test_a_search_holds_each_step_of_any_shortest_path(size: int, loops: bool) -> None:
    """What makes the path easy to predict: in each cell it takes the side that the search left the cell by last."""
    for seed in range(20):
        maze = random_maze(random.Random(seed), size)
        maze = with_loops(maze, random.Random(seed)) if loops else maze
        graph = graph_of(maze)
        for path in networkx.all_shortest_paths(graph, maze.start, maze.target):
            moves = [next(m for m in MOVES if neighbour(cell, m) == other) for cell, other in pairwise(path)]
            found = maze.search(moves)
            assert (found[0], found[-1]) == (maze.start, maze.target)
            assert maze.target not in found[:-1]
            assert all(graph.has_edge(*step) for step in pairwise(found))
            assert len({*pairwise(found)}) == len(found) - 1  # no step is taken twice
            last, walked = dict(pairwise(found)), [maze.start]
            while walked[-1] != maze.target:
                walked.append(last[walked[-1]])
            assert walked == path


@pytest.mark.parametrize("moves", [["down"], ["left"], ["left", "right", "left", "down", "right"]])
def test_a_search_for_moves_that_are_no_shortest_way_is_refused(moves: list[str]) -> None:
    with pytest.raises(BadMaze, match="expected a shortest way from 0-1 to 1-1, got"):
        parse_maze(SMALL).search(moves)


def test_a_maze_without_a_way_has_no_path() -> None:
    closed = Maze(2, (("right",), ("left",), ("right",), ("left",)), (0, 1), (1, 1))
    with pytest.raises(BadMaze, match="no way leads from 0-1 to 1-1"):
        closed.path()


def test_mazes_differ_and_start_anywhere() -> None:
    mazes = [random_maze(random.Random(seed), 5) for seed in range(200)]
    assert len({maze.text for maze in mazes}) == 200
    assert len({maze.start for maze in mazes}) == 25
    assert not any(maze.start == maze.target for maze in mazes)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("", "expected cells", id="empty"),
        pytest.param("cat", "expected cells", id="another query"),
        pytest.param(SMALL.partition(" from")[0], "expected cells", id="no start"),
        pytest.param(SMALL.replace("RD", "DR"), "expected cells", id="sides in another order"),
        pytest.param(SMALL.replace("0-0", "٠-٠"), "expected cells", id="digits that are not ASCII"),
        pytest.param(SMALL.replace("1-1:L ", ""), "expected 2 x 2 to 16 x 16", id="a cell is missing"),
        pytest.param(SMALL.replace("0-0:RD 0-1:L", "0-1:L 0-0:RD"), "row by row", id="another order"),
        pytest.param("0-0: from 0-0 to 0-0", "expected 2 x 2", id="a single cell"),
        pytest.param(SMALL.replace("to 1-1", "to 0-1"), "two cells", id="target is the start"),
        pytest.param(SMALL.replace("to 1-1", "to 7-7"), "two cells", id="target outside"),
        pytest.param(SMALL.replace("0-1:L", "0-1:RL"), "side R of 0-1 is open", id="open to the outside"),
        pytest.param(SMALL.replace("0-1:L", "0-1:"), "side R of 0-0 is open", id="open on one side alone"),
        pytest.param("0-0:R 0-1:L 1-0:R 1-1:L from 0-1 to 1-1", "no way", id="no way"),
        pytest.param(SMALL.replace("0-0", "0" * 6000 + "-0"), "expected cells", id="too long"),
    ],
)
def test_a_text_that_is_no_maze_says_why(text: str, said: str) -> None:
    with pytest.raises(BadMaze, match=said):
        parse_maze(text)
    assert drawn_path(text, "left", (10, 10)) == []


@pytest.mark.parametrize(
    ("text", "moves"),
    [
        pytest.param("left down", ["left", "down"], id="plain"),
        pytest.param(" Left,\nDOWN ", ["left", "down"], id="case, commas and lines"),
        pytest.param("left then down", None, id="another word"),
        pytest.param("leftdown", None, id="no space"),
        pytest.param("l d", None, id="letters"),
        pytest.param(" ,\n", None, id="no word"),
        pytest.param("left " * MAX_MOVES, ["left"] * MAX_MOVES, id="the most"),
        pytest.param("left " * (MAX_MOVES + 1), None, id="one too many"),
        pytest.param("left " * 1_000_000, None, id="far too many"),
    ],
)
def test_moves_are_read(text: str, moves: list[str] | None) -> None:
    assert read_moves(text) == moves


def test_a_walk_ends_before_a_wall_and_is_drawn_in_the_pictures_pixels() -> None:
    maze = parse_maze(SMALL)
    assert maze.path() == ["left", "down", "right"]
    assert maze.walk(["left", "left", "down"]) == [(0, 1), (0, 0)]
    assert drawn_path(SMALL, "left up", (100, 60)) == [(75, 15), (25, 15)]
    assert drawn_path(SMALL, None, (100, 60)) == drawn_path("cat", "left", (100, 60)) == []


def test_a_picture_has_walls_where_cells_are_closed() -> None:
    maze = random_maze(random.Random(0), 5)
    picture = maze.draw()
    side = picture.width // maze.size
    for row, column in product(range(5), repeat=2):
        for move, (down, right) in MOVES.items():
            x, y = (column + 0.5 + right / 2) * side, (row + 0.5 + down / 2) * side
            x, y = min(x, picture.width - 1), min(y, picture.height - 1)
            is_wall = sum(picture.getpixel((int(x), int(y)))) < 300  # type: ignore[arg-type]
            assert is_wall == (move not in maze.moves_from((row, column))), (row, column, move)
