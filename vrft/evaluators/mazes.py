"""Accuracy of moves through mazes."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from vrft.evaluators.base import Evaluator
from vrft.mazes import parse_maze, read_moves
from vrft.types import Answer, Sample
from vrft.utils.files import write_table


class Row(NamedTuple):
    """One answer: its moves, how many of them lead through open sides, and the moves of the truth."""

    moves: int
    legal: int
    right: int
    reached: bool
    valid: bool

    @property
    def solved(self) -> bool:
        """All moves lead through open sides, and the last one to the target, by no detour."""
        return self.reached and self.moves == self.right


class MazeEvaluator(Evaluator[Row]):
    """Logs `val/accuracy`, `val/reached`, `val/legal`, `val/path_length`, `val/solved_path_length` and `val/valid`.

    `accuracy` is the share of answers that are a shortest way; `reached` counts those with a detour, too. `legal` is
    the mean over answers of the share of moves before the first wall, 0 for an answer that can't be read. `path_length`
    is the mean number of moves in answers that can be read, `solved_path_length` in those that are right. Writes a
    table of accuracies by the number of moves that the truth has.
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
