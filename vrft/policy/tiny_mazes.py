"""An untrained tiny policy for mazes: a Qwen2-VL of 0.3 M parameters that reads a maze's text, one token per word.

`python -m vrft.policy.tiny_mazes FOLDER` writes it. Its vision tower sees 28 x 28 pixels, too few for walls: the text
alone tells the maze.
"""

from __future__ import annotations

import argparse
from itertools import combinations, product
from pathlib import Path
from typing import TYPE_CHECKING

from vrft.mazes import MOVES, SIDES
from vrft.policy.tiny import SPECIAL_TOKENS, build_model, word_tokenizer, write_parts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

IMAGE_SIZE = 28  # pixels: 2 x 2 patches, merged to one image token
LARGEST = 5  # cells on a side
TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build a tokenizer in which a cell with its open sides and a move are one token each."""
    names = [f"{row}-{column}" for row, column in product(range(LARGEST), repeat=2)]
    sides = ["".join(letters) for count in range(1, 5) for letters in combinations(SIDES.values(), count)]
    spaced = [*names, *(f"{name}:{letters}" for name, letters in product(names, sides)), *MOVES, "from", "to"]
    turns = ["system\n", "user\n", "assistant\n", "\n", " ", "."]
    vocabulary = [*SPECIAL_TOKENS, "[UNK]", *TAGS, *turns, *MOVES, "from", "Solve", *(f" {word}" for word in spaced)]
    return word_tokenizer(
        vocabulary, r"system\n|user\n|assistant\n|\n| ?\d-\d(?::[URDL]+)?| ?[A-Za-z]+|[^A-Za-z\d]", TAGS
    )


def write_checkpoint(folder: Path, seed: int = 0, width: int = 64, layers: int = 4) -> None:
    """Write an untrained checkpoint: config, bfloat16 weights, tokenizer and processor."""
    tokenizer = build_tokenizer()
    write_parts(folder, tokenizer, build_model(tokenizer, seed, width, layers), IMAGE_SIZE)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write an untrained tiny Qwen2-VL checkpoint for mazes.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=4)
    arguments = parser.parse_args()
    write_checkpoint(arguments.folder, arguments.seed, arguments.width, arguments.layers)
