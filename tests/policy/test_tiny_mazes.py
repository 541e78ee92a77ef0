"""The untrained policy for mazes: what its tokens are, and what they start from."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import product

import torch
import yaml

from tests.helpers.answers import FRAME, sample
from vrft.cli.named_configs import CONFIGS
from vrft.mazes import random_maze
from vrft.policy.tiny_mazes import LARGEST, TAGS, build_tokenizer, compose_cells
from vrft.tasks import MazeTask


def test_every_cell_and_move_is_one_token_and_none_is_unknown() -> None:
    tokenizer, task, rng = build_tokenizer(), MazeTask(template="Solve {query}"), random.Random(0)
    for size in (2, 3, 4, 5) * 5:
        maze = random_maze(rng, size)
        moves = maze.path()
        asked = replace(sample(" ".join(moves)), query=maze.text)
        prompt = tokenizer(task.question(asked, FRAME)).input_ids
        answer = tokenizer(task.target_text(asked, FRAME)).input_ids
        assert tokenizer.unk_token_id not in {*prompt, *answer}
        assert len(prompt) == 1 + size**2 + len(("from", maze.start, "to", maze.target))
        assert len(answer) == len(maze.search(moves)) + (len(moves) + 1) + len(moves) + len(("search", "path", *TAGS))
        assert tokenizer.decode(answer) == task.target_text(asked, FRAME)


def test_the_longest_answer_has_room() -> None:
    """A search passes each of 24 sides twice but for those on the path, which the path and the answer repeat."""
    most = LARGEST**2 - 1  # moves of a path, and sides between cells
    longest = max(
        (1 + 2 * most - moves) + (moves + 1) + moves + len(("search", "path", *TAGS, "end"))
        for moves in range(1, most + 1)
    )
    for name in ("mazes", "mazes_sft"):
        config = yaml.safe_load((CONFIGS / "tiny" / f"{name}.yaml").read_text())
        assert longest <= config["model"]["init_args"]["max_completion_length"] < longest + 10


def test_cells_start_from_their_parts_and_other_tokens_are_left_alone() -> None:
    vocabulary = build_tokenizer().get_vocab()
    untouched = torch.full((len(vocabulary), 8), 7.0)
    embeddings = untouched.clone()
    compose_cells(embeddings, vocabulary, seed=0)

    def vector(name: str) -> torch.Tensor:
        return embeddings[vocabulary[f" {name}"]]

    torch.testing.assert_close(vector("0-1") - vector("0-0"), vector("3-1:UL") - vector("3-0:UL"))
    torch.testing.assert_close(vector("2-1:UD") - vector("2-1:D"), vector("4-4:URL") - vector("4-4:RL"))
    cells = {vocabulary[f" {row}-{column}"] for row, column in product(range(LARGEST), repeat=2)}
    assert torch.unique(embeddings[[*cells]], dim=0).shape[0] == LARGEST**2
    left_alone = [index for word, index in vocabulary.items() if "-" not in word]
    assert torch.equal(embeddings[left_alone], untouched[left_alone])
