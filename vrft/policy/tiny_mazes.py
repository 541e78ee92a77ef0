"""An untrained tiny policy for mazes: a Qwen2-VL that reads the text of a maze, one token per word.

`python -m vrft.policy.tiny_mazes FOLDER` writes the policy. It has 0.4 M parameters, of which the configs train 0.18 M.
Its vision tower sees 28 x 28 pixels, too few to show walls, so only the text describes the maze.
"""

from __future__ import annotations

import argparse
import re
from itertools import combinations, product
from pathlib import Path
from typing import TYPE_CHECKING

from vrft.mazes import MOVES, SIDES
from vrft.policy.tiny import SPECIAL_TOKENS, build_model, word_tokenizer, write_parts

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerFast

IMAGE_SIZE = 28  # pixels: 2 x 2 patches, merged to one image token
LARGEST = 5  # maximum number of cells per side
TAGS = ("<think>", "</think>", "<answer>", "</answer>")

ROPE_THETA = 30.0
"""Base of the rotary positions. With 10,000, few frequencies distinguish positions in texts of about 100 tokens."""

CELL_SCALE = 0.09
"""Standard deviation of the parts of a cell's embedding. Their sum has about the norm of other embeddings."""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build a tokenizer with one token for each cell with its open sides, and one for each move."""
    names = [f"{row}-{column}" for row, column in product(range(LARGEST), repeat=2)]
    sides = ["".join(letters) for count in range(1, 5) for letters in combinations(SIDES.values(), count)]
    spaced = [*names, *(f"{name}:{letters}" for name, letters in product(names, sides)), *MOVES, "from", "to", "path"]
    turns = ["system\n", "user\n", "assistant\n", "\n", " ", "."]
    words = [*MOVES, "from", "search", "Solve", *(f" {word}" for word in spaced)]
    vocabulary = [*SPECIAL_TOKENS, "[UNK]", *TAGS, *turns, *words]
    return word_tokenizer(
        vocabulary, r"system\n|user\n|assistant\n|\n| ?\d-\d(?::[URDL]+)?| ?[A-Za-z]+|[^A-Za-z\d]", TAGS
    )


def compose_cells(embeddings: Tensor, vocabulary: dict[str, int], seed: int) -> None:
    """Set the embedding of each cell, a row of (V, H), to a sum of random vectors for row, column and open sides.

    Otherwise 400 tokens, composed of 15 parts, would have to be learned separately.
    """
    import torch

    parts = torch.randn(
        2 * LARGEST + len(SIDES) + 1, embeddings.shape[1], generator=torch.Generator().manual_seed(seed)
    )
    for word, index in vocabulary.items():
        if found := re.fullmatch(r" (\d)-(\d)(:?)([URDL]*)", word):
            row, column, colon, letters = found.groups()
            sides = [2 * LARGEST + "URDL".index(letter) for letter in letters]
            chosen = [int(row), LARGEST + int(column), *sides, *[len(parts) - 1] * len(colon)]
            embeddings[index] = CELL_SCALE * parts[chosen].sum(0)


def write_checkpoint(folder: Path, seed: int = 0, width: int = 64, layers: int = 3) -> None:
    """Write an untrained checkpoint: config, bfloat16 weights, tokenizer and processor."""
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, seed, width, layers, rope_theta=ROPE_THETA)
    compose_cells(model.get_input_embeddings().weight.data, tokenizer.get_vocab(), seed)
    write_parts(folder, tokenizer, model, IMAGE_SIZE)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write an untrained tiny Qwen2-VL checkpoint for mazes.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write_checkpoint(arguments.folder, arguments.seed)
