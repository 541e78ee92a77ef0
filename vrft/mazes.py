"""Mazes of n x n cells: generation, text, paths and pictures.

The text of a maze lists each cell as row-column:open sides, then the start and the target:

    0-0:RD 0-1:L 1-0:UR 1-1:L from 0-1 to 1-1
"""

from __future__ import annotations

import random
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image, ImageDraw

Cell = tuple[int, int]
"""Row and column."""

MOVES: dict[str, Cell] = {"up": (-1, 0), "right": (0, 1), "down": (1, 0), "left": (0, -1)}
"""Change of (row, column) by each move, in clockwise order."""

SIDES = {"up": "U", "right": "R", "down": "D", "left": "L"}
OPPOSITE = {"up": "down", "right": "left", "down": "up", "left": "right"}

SIZES = range(2, 17)
"""Supported numbers of cells per side."""

MAX_MOVES = 4 * SIZES[-1] ** 2
"""Maximum number of moves in an answer."""

CELL_PIXELS = 24
WALL, FLOOR = (40, 40, 40), (250, 250, 250)
START, TARGET = (40, 160, 70), (210, 50, 50)

_ENTRY = re.compile(r"(\d+)-(\d+):(U?R?D?L?)")
_TEXT = re.compile(rf"(?:{_ENTRY.pattern} )+from (\d+)-(\d+) to (\d+)-(\d+)", re.ASCII)


class BadMaze(ValueError):
    """Raised for a text that does not describe a maze, or moves that don't fit one."""


@dataclass(frozen=True, slots=True)
class Maze:
    """Cells with open sides, a start and a target."""

    size: int
    open_sides: tuple[tuple[str, ...], ...]
    """Possible moves from each cell, row by row, in the order of `MOVES`."""
    start: Cell
    target: Cell

    @property
    def text(self) -> str:
        """The maze as text, in the format of the module's docstring."""
        cells = ((row, column) for row in range(self.size) for column in range(self.size))
        return f"{' '.join(map(self.describe, cells))} from {name_of(self.start)} to {name_of(self.target)}"

    def describe(self, cell: Cell) -> str:
        """Return the name of a cell and its open sides."""
        return f"{name_of(cell)}:{''.join(SIDES[move] for move in self.moves_from(cell))}"

    def moves_from(self, cell: Cell) -> tuple[str, ...]:
        """Return the possible moves from a cell."""
        return self.open_sides[cell[0] * self.size + cell[1]]

    def walk(self, moves: Sequence[str]) -> list[Cell]:
        """Return the cells on the path from the start, up to the first move into a wall."""
        cells = [self.start]
        for move in moves:
            if move not in self.moves_from(cells[-1]):
                break
            cells.append(neighbour(cells[-1], move))
        return cells

    def is_shortest(self, moves: Sequence[str]) -> bool:
        """Return whether the moves are a shortest path to the target."""
        cells = self.walk(moves)
        return cells[-1] == self.target and len(cells) - 1 == len(moves) == len(self.path())

    def search(self, moves: Sequence[str]) -> list[Cell]:
        """Return the cells that a depth-first search visits until it reaches the target, dead ends included.

        From each cell, the search leaves by the first open side that leads to an unvisited cell, clockwise after the
        side by which it entered; from the start, beginning with up. It steps back if there is no such side. In a maze
        without loops, each step follows from the previous one and the cell's open sides. In a maze with loops, the
        search enters a cell only along a shortest path from the start, and the cells of `moves` only along `moves`.

        Args:
            moves: a shortest path to the target. The search includes all of its steps.

        Raises:
            BadMaze: the moves are not a shortest path to the target.
        """
        if not self.is_shortest(moves):
            raise BadMaze(f"expected a shortest way from {name_of(self.start)} to {name_of(self.target)}, got {moves}")
        came_by = self._came_by() | dict(zip(self.walk(moves)[1:], moves, strict=True))
        trail = [(self.start, "left")]  # cells on the path to the current one, with the side by which each was entered
        cells, visited = [self.start], {self.start}
        while cells[-1] != self.target:
            cell, entered = trail[-1]
            turn = [*MOVES].index(entered) + 1
            clockwise = [*MOVES][turn:] + [*MOVES][:turn]
            ways = ((move, neighbour(cell, move)) for move in clockwise if move in self.moves_from(cell))
            move = next((move for move, other in ways if other not in visited and came_by[other] == move), None)
            if move is None:
                trail.pop()
            else:
                trail.append((neighbour(cell, move), OPPOSITE[move]))
                visited.add(neighbour(cell, move))
            cells.append(trail[-1][0])
        return cells

    def path(self) -> list[str]:
        """Return the moves of a shortest path to the target. Raise BadMaze if the target can't be reached."""
        came_by = self._came_by()
        moves: list[str] = []
        cell = self.target
        while cell != self.start:
            if cell not in came_by:
                raise BadMaze(f"no way leads from {name_of(self.start)} to {name_of(self.target)}")
            moves.append(came_by[cell])
            cell = neighbour(cell, OPPOSITE[came_by[cell]])
        return moves[::-1]

    def _came_by(self) -> dict[Cell, str]:
        """Return the last move of a shortest path to each reachable cell except the start."""
        came_by: dict[Cell, str] = {}
        queue = deque([self.start])
        while queue:
            cell = queue.popleft()
            for move in self.moves_from(cell):
                following = neighbour(cell, move)
                if following != self.start and following not in came_by:
                    came_by[following] = move
                    queue.append(following)
        return came_by

    def draw(self) -> Image.Image:
        """Draw walls, the start in green and the target in red."""
        side = self.size * CELL_PIXELS
        picture = Image.new("RGB", (side, side), FLOOR)
        pen = ImageDraw.Draw(picture)
        for cell, colour in ((self.start, START), (self.target, TARGET)):
            x, y = cell[1] * CELL_PIXELS, cell[0] * CELL_PIXELS
            pen.ellipse((x + 6, y + 6, x + CELL_PIXELS - 6, y + CELL_PIXELS - 6), colour)
        for row in range(self.size):
            for column in range(self.size):
                for line in self._walls((row, column)):
                    pen.line(line, WALL, 3)
        return picture

    def _walls(self, cell: Cell) -> Iterator[tuple[int, int, int, int]]:
        top, left = cell[0] * CELL_PIXELS, cell[1] * CELL_PIXELS
        bottom, right = top + CELL_PIXELS - 1, left + CELL_PIXELS - 1
        lines = {
            "up": (left, top, right, top),
            "right": (right, top, right, bottom),
            "down": (left, bottom, right, bottom),
            "left": (left, top, left, bottom),
        }
        return (line for move, line in lines.items() if move not in self.moves_from(cell))


def name_of(cell: Cell) -> str:
    """Return the name of a cell, "row-column"."""
    return f"{cell[0]}-{cell[1]}"


def neighbour(cell: Cell, move: str) -> Cell:
    """Return the cell that a move leads to, which may lie outside the maze."""
    down, right = MOVES[move]
    return cell[0] + down, cell[1] + right


def random_maze(rng: random.Random, size: int) -> Maze:
    """Generate a maze without loops by a random depth-first search: exactly one path joins any two cells."""
    opened: dict[Cell, set[str]] = {(row, column): set() for row in range(size) for column in range(size)}
    cell = (rng.randrange(size), rng.randrange(size))
    trail, seen = [cell], {cell}
    while trail:
        closed = [move for move in MOVES if neighbour(trail[-1], move) in opened.keys() - seen]
        if not closed:
            trail.pop()
            continue
        move = rng.choice(closed)
        following = neighbour(trail[-1], move)
        opened[trail[-1]].add(move)
        opened[following].add(OPPOSITE[move])
        trail.append(following)
        seen.add(following)
    start, target = rng.sample([*opened], 2)
    sides = tuple(tuple(move for move in MOVES if move in found) for found in opened.values())
    return Maze(size, sides, start, target)


@lru_cache(maxsize=4096)
def parse_maze(text: str) -> Maze:
    """Parse the text of a maze.

    Raises:
        BadMaze: the text has another format, open sides of neighbours disagree, or no path leads to the target.
    """
    if len(text) > 16 * SIZES[-1] ** 2 or not (form := _TEXT.fullmatch(text)):
        raise BadMaze("expected cells with their open sides, e.g. 0-0:RD 0-1:L 1-0:UR 1-1:L from 0-1 to 1-1")
    entries = _ENTRY.findall(text.partition(" from ")[0])
    size = round(len(entries) ** 0.5)
    order = [(row, column) for row in range(size) for column in range(size)]
    if size not in SIZES or [(int(row), int(column)) for row, column, _ in entries] != order:
        raise BadMaze(f"expected {SIZES[0]} x {SIZES[0]} to {SIZES[-1]} x {SIZES[-1]} cells, row by row from 0-0")
    sides = tuple(tuple(move for move, side in SIDES.items() if side in letters) for _, _, letters in entries)
    row, column, target_row, target_column = map(int, form.groups()[-4:])
    maze = Maze(size, sides, (row, column), (target_row, target_column))
    if maze.start == maze.target or not {maze.start, maze.target} <= {*order}:
        raise BadMaze(f"expected two cells after from and to, got {name_of(maze.start)} and {name_of(maze.target)}")
    for cell in order:
        for move in maze.moves_from(cell):
            other = neighbour(cell, move)
            if other not in order or OPPOSITE[move] not in maze.moves_from(other):
                raise BadMaze(f"the side {SIDES[move]} of {name_of(cell)} is open to nothing or to a wall")
    maze.path()
    return maze


def read_moves(text: str) -> list[str] | None:
    """Parse moves separated by white space or commas. Return None if there is another word, no move or too many.

    >>> read_moves("Right, down down"), read_moves("go right"), read_moves("")
    (['right', 'down', 'down'], None, None)
    """
    words = text.lower().replace(",", " ").split(maxsplit=MAX_MOVES)
    return words if 0 < len(words) <= MAX_MOVES and MOVES.keys() >= {*words} else None


def drawn_path(query: str, answer: object, size: tuple[int, int]) -> list[tuple[float, float]]:
    """Return the centres of the cells on an answer's path, up to the first move into a wall.

    Args:
        query: the maze as text.
        answer: the value of an answer.
        size: width and height of the picture.

    Returns:
        Points in pixels; an empty list if the query is not a maze or the answer has no moves.
    """
    moves = read_moves(answer) if isinstance(answer, str) else None
    try:
        maze = parse_maze(query)
    except BadMaze:
        return []
    if moves is None:
        return []
    width, height = size
    return [((c + 0.5) / maze.size * width, (r + 0.5) / maze.size * height) for r, c in maze.walk(moves)]
