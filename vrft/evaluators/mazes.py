"""Evaluate the accuracy of moves through mazes."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from vrft.evaluators.base import Evaluator
from vrft.mazes import parse_maze, read_moves
from vrft.types import Answer, Sample
from vrft.utils.files import write_table


class Row(NamedTuple):
    """One answer: its moves, the number of moves before the first wall, and the correct moves."""

    moves: int
    legal: int
    right: int
    reached: bool
    valid: bool

    @property
    def solved(self) -> bool:
        """Whether the moves are a shortest path to the target."""
        return self.reached and self.moves == self.right


class MazeEvaluator(Evaluator[Row]):
    """Logs `val/accuracy`, `val/reached`, `val/legal`, `val/path_length`, `val/solved_path_length` and `val/valid`.

    `accuracy` is the share of answers that are a shortest path; `reached` also counts paths with detours. `legal` is
    the mean over answers of the share of moves before the first wall, 0 for an unreadable answer. `path_length` is the
    mean number of moves of readable answers, `solved_path_length` of correct answers. Writes a table of accuracy by the
    number of moves of the truth.
    """

    def row(self, answer: Answer, sample: Sample) -> Row:
        assert isinstance(sample.target, str)
        maze, right = parse_maze(sample.query), len(sample.target.split())
        moves = read_moves(answer.value) if isinstance(answer.value, str) else None
        if moves is None:
            return Row(0, 0, right, False, answer.valid)
        cells = maze.walk(moves)
        legal = len(cells) - 1
        return Row(len(moves), legal, right, legal == len(moves) and cells[-1] == maze.target, answer.valid)

    def scores(self, rows: list[Row]) -> dict[str, float]:
        lengths = {
            "path_length": [row.moves for row in rows if row.moves],
            "solved_path_length": [row.moves for row in rows if row.solved],
        }
        return {
            "accuracy": sum(row.solved for row in rows) / len(rows),
            "reached": sum(row.reached for row in rows) / len(rows),
            "legal": sum(row.legal / max(row.moves, 1) for row in rows) / len(rows),
            "valid": sum(row.valid for row in rows) / len(rows),
            **{name: sum(values) / len(values) for name, values in lengths.items() if values},
        }

    def quality(self, row: Row) -> float:
        return float(row.solved)

    def write(self, folder: Path, rows: list[Row]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        lengths = sorted({row.right for row in rows})
        groups = [[row.solved for row in rows if row.right == length] for length in lengths]
        table = [(n, len(found), sum(found) / len(found)) for n, found in zip(lengths, groups, strict=True)]
        write_table(folder / "accuracy_per_length.csv", ["moves", "mazes", "accuracy"], table)
