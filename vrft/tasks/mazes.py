"""Solve mazes (AlphaMaze, arXiv 2502.14669)."""

from __future__ import annotations

from vrft.mazes import BadMaze, parse_maze, read_moves
from vrft.rewards import MazeLegal, MazeMoves, MazeTarget, Reward
from vrft.tasks.base import Task
from vrft.types import Frame, Question


class MazeTask(Task):
    """List the moves from the start of a maze to its target. The query is the maze as text, see `vrft.mazes`.

    A `template` without {query} asks about the picture alone; rewards and evaluators still read the query.
    """

    prompt = (
        "The image shows a maze with the start in green and the target in red. This is the maze as text, with the open "
        "sides U (up), R (right), D (down) and L (left) after each cell: {query}. Which moves lead from the start to "
        "the target?"
    )
    form = "moves out of up, right, down and left, separated by spaces"

    def query_problem(self, query: str) -> str | None:
        try:
            parse_maze(query)
        except BadMaze as error:
            return str(error)
        return None

    def reasoning_text(self, sample: Question) -> str:
        assert isinstance(sample.target, str)
        maze = parse_maze(sample.query)
        moves = sample.target.split()
        search, path = (" ".join(map(maze.describe, cells)) for cells in (maze.search(moves), maze.walk(moves)))
        return f"search {search} path {path}"

    def read_target(self, content: str, sample: Question, frame: Frame) -> str | None:
        """Parse the moves of a solution. Return None unless they are a shortest path through the maze of the query."""
        moves = read_moves(content)
        if moves is None:
            return None
        if self.query_problem(sample.query) is None and not parse_maze(sample.query).is_shortest(moves):
            return None
        return " ".join(moves)

    def read(self, content: str, sample: Question, frame: Frame) -> str | None:
        moves = read_moves(content)
        return None if moves is None else " ".join(moves)

    def read_error(self, content: str, sample: Question, frame: Frame) -> str:
        if not content.strip():
            return super().read_error(content, sample, frame)
        return "the answer block has other words than up, right, down and left, or too many"

    def rewards(self) -> dict[str, Reward]:
        return {"moves": MazeMoves(), "legal": MazeLegal(), "target": MazeTarget(), **super().rewards()}
