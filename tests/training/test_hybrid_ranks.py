"""A model with recurrent layers, sharded over two processes, trains like one; its prompts have an example."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from tests.conftest import Command
from tests.helpers import CSV_ONLY, UNJUDGED, families
from tests.helpers.ranks import Ranks
from vrft.__main__ import main
from vrft.policy import Policy
from vrft.rewards import Reward
from vrft.types import Answer, Question

ROUNDING = 3e-5


class Letters(Reward):
    """Rewards that differ within a group even if no answer can be read."""

    def score(self, answer: Answer, sample: Question) -> float:
        return sum(map(ord, answer.text)) % 7 / 7


def last(run: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=False)["state_dict"]
    return state


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], names: Sequence[str]) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in names)


def completions(run: Path) -> dict[tuple[int, int, int], str]:
    entries = [json.loads(line) for line in (run / "transcripts.jsonl").read_text().splitlines()]
    return {(entry["rollout"], entry["sample"], entry["generation"]): entry["completion"] for entry in entries}


def test_two_sharded_processes_train_like_one(quick_fit: Command, two_ranks: Ranks, tmp_path: Path) -> None:
    checkpoint = families.write(tmp_path / "qwen3_5", "qwen3_5")
    common = [
        f"--model.policy.checkpoint={checkpoint}",
        f"--model.rewards={{letters: {{class_path: {__name__}.Letters}}}}",
        "--model.num_generations=4",
        "--model.max_completion_length=8",
        "--data.examples=1",
        "--transcripts.every_n_rollouts=1",
        UNJUDGED,
        CSV_ONLY,
    ]
    assert main([*quick_fit(*common, "--data.batch_size=4"), f"--run_dir={tmp_path}/one"]) == 0
    sharded = ["--trainer.strategy=fsdp2", "--trainer.devices=2", "--trainer.accelerator=cpu"]
    two_ranks.run([*quick_fit(*common, *sharded), f"--run_dir={tmp_path}/two"], cwd=tmp_path)
    alone, together = last(tmp_path / "one"), last(tmp_path / "two")
    policy = Policy(checkpoint, dtype="float32")
    policy.load(keep_reference=False)
    start = {f"policy.{name}": parameter.detach() for name, parameter in policy.named_parameters()}
    assert distance(alone, together, [*start]) < ROUNDING
    assert distance(alone, start, [*start]) > 5 * ROUNDING  # the learning rate rises slowly
    found = completions(tmp_path / "two")  # the first rank writes only its own
    assert 0 < len(found) < len(completions(tmp_path / "one"))
    assert found.items() <= completions(tmp_path / "one").items()
    for name in ("one", "two"):
        lines = (tmp_path / name / "transcripts.jsonl").read_text().splitlines()
        assert all(json.loads(line)["prompt"].count("</answer>") == 1 for line in lines)
