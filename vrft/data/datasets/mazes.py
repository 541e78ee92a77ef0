"""Generated mazes, as pictures and as text."""

from __future__ import annotations

import random
from collections.abc import Collection
from functools import cache

from torch.utils.data import Dataset

from vrft.data.datamodule import VisionData
from vrft.errors import ConfigurationError
from vrft.mazes import SIZES, Maze, random_maze
from vrft.types import Sample
from vrft.utils.bounds import Seed

MAX_DRAWS = 1000
"""Maximum number of attempts to draw a training maze that is not held out."""


class Mazes(Dataset[Sample]):
    """Mazes of n x n cells. Maze i depends on (name, i) alone; a maze whose text is in `unwanted` is drawn again."""

    def __init__(self, name: str, count: int, sizes: tuple[int, ...], unwanted: Collection[str] = ()) -> None:
        self.name, self.count, self.sizes, self.unwanted = name, count, sizes, unwanted

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        maze = self.maze(index)
        return Sample(index, (maze.draw(),), f"{self.name}/{index}", maze.text, " ".join(maze.path()))

    def maze(self, index: int) -> Maze:
        """Return maze number `index`."""
        rng = random.Random(f"maze/{self.name}/{index}")
        for _ in range(MAX_DRAWS):
            maze = random_maze(rng, rng.choice(self.sizes))
            if maze.text not in self.unwanted:
                return maze
        sides = " and ".join(map(str, sorted({*self.sizes})))
        raise ConfigurationError(
            f"data.val_size: {len(self.unwanted)} mazes are held out, and {MAX_DRAWS} drawn ones with {sides} cells on "
            "a side are all among them; expected a smaller data.val_size or a larger data.size"
        )


class MazeData(VisionData):
    """Mazes from a random depth-first search (AlphaMaze, arXiv 2502.14669), generated on access.

    The held-out mazes are the same for every seed, and none of them is among the training mazes.
    """

    def __init__(
        self,
        size: int = 5,
        smaller: list[int] | None = None,
        train_size: int = 10_000,
        val_size: int = 100,
        batch_size: int = 8,
        eval_batch_size: int = 100,
        num_workers: int = 0,
        seed: Seed = 0,
    ) -> None:
        """Set the mazes.

        Args:
            size: number of cells per side.
            smaller: further numbers of cells per side, used for training mazes only.
            train_size: number of training mazes.
            val_size: number of held-out mazes.
            batch_size: prompts per rank and training step.
            eval_batch_size: prompts decoded together in evaluation.
            num_workers: worker processes that generate mazes; 0: use the main process.
            seed: seed of the training mazes and their order.
        """
        super().__init__(batch_size, eval_batch_size, num_workers, seed)
        for field, value in (("size", size), *(("smaller", number) for number in smaller or ())):
            if value not in SIZES:
                raise ConfigurationError(
                    f"data.{field}: expected {SIZES[0]} to {SIZES[-1]} cells on a side, got {value}"
                )
        for field, value in (("train_size", train_size), ("val_size", val_size)):
            if value < 1:
                raise ConfigurationError(f"data.{field}: expected at least 1, got {value}")
        self.size, self.sizes = size, (size, *(smaller or ()))
        self.train_size, self.val_size = train_size, val_size

    def setup(self, stage: str) -> None:
        """Raise ConfigurationError before training if all mazes are held out."""
        if stage == "fit":
            self.train_set().maze(0)

    def train_set(self) -> Mazes:
        return Mazes(f"train-{self.seed}", self.train_size, self.sizes, held_out_texts(self.size, self.val_size))

    def val_set(self) -> Mazes:
        return Mazes("val", self.val_size, (self.size,))


@cache
def held_out_texts(size: int, count: int) -> frozenset[str]:
    """Return the texts of the held-out mazes."""
    mazes = Mazes("val", count, (size,))
    return frozenset(mazes.maze(i).text for i in range(count))
