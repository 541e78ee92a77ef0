"""Rewards for moves through a maze (AlphaMaze, arXiv 2502.14669). Queries are texts of mazes, see `vrft.mazes`."""

from __future__ import annotations

from abc import abstractmethod

from vrft.errors import ConfigurationError
from vrft.mazes import BadMaze, Maze, parse_maze, read_moves
from vrft.rewards.base import Reward
from vrft.types import Answer, Question


class MazeReward(Reward):
    """Base class of rewards for moves. An answer that is not a list of moves scores 0."""

    @abstractmethod
    def score_moves(self, moves: list[str], right: list[str], maze: Maze) -> float:
        """Return the score of moves in a maze. `right` are the correct moves."""

    def score(self, answer: Answer, sample: Question) -> float:
        if not isinstance(answer.value, str) or not isinstance(sample.target, str):
            return 0.0
        moves, right = read_moves(answer.value), read_moves(sample.target)
        if moves is None or right is None:
            return 0.0
        try:
            maze = parse_maze(sample.query)
        except BadMaze as error:
            raise ConfigurationError(f"{type(self).__name__}: the query is no maze: {error}") from error
        return self.score_moves(moves, right, maze)


class MazeMoves(MazeReward):
    """Number of moves before the first wrong one / max(moves of the truth, moves of the answer).

    Nothing earns more than the truth, and nothing else earns as much.
    """

    def score_moves(self, moves: list[str], right: list[str], maze: Maze) -> float:
        agreed = next((i for i, (a, b) in enumerate(zip(moves, right, strict=False)) if a != b), None)
        agreed = min(len(moves), len(right)) if agreed is None else agreed
        return agreed / max(len(moves), len(right))


class MazeLegal(MazeReward):
    """Number of moves before the first wall or visited cell / max(moves of the truth, moves of the answer).

    Nothing earns more than the truth. Another legal path of the same length earns as much, so combine this reward with
    others.
    """

    def score_moves(self, moves: list[str], right: list[str], maze: Maze) -> float:
        cells = maze.walk(moves)
        fresh = next((i for i, cell in enumerate(cells) if cell in cells[:i]), len(cells))
        return (fresh - 1) / max(len(moves), len(right))


class MazeTarget(MazeReward):
    """1 if the moves lead to the target without running into a wall or a visited cell, else 0.

    Nothing earns more than the truth. A path that passes the target or turns back earns nothing.
    """

    def score_moves(self, moves: list[str], right: list[str], maze: Maze) -> float:
        cells = maze.walk(moves)
        return float(len(cells) == len(moves) + 1 == len({*cells}) and cells[-1] == maze.target)
