"""Visual self-distillation: divergences against a plain loop, the privileged view, and a trial of one step."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import self_distillation
import torch
from self_distillation import Divergence, answer_tokens, divergence, spotlight

from vrft.data.datasets.scenes import draw_scene
from vrft.policy.logprobs import token_distribution
from vrft.types import Sample


def plain(s: list[float], t: list[float], kind: Divergence) -> float:
    if kind == "forward":
        return plain(t, s, "reverse")
    if kind == "js":
        mixture = [(a + b) / 2 for a, b in zip(s, t, strict=True)]
        return (plain(s, mixture, "reverse") + plain(t, mixture, "reverse")) / 2
    return sum(a * math.log(a / b) for a, b in zip(s, t, strict=True) if a > 0)


@pytest.mark.parametrize("kind", ["forward", "reverse", "js"])
def test_divergences_equal_a_plain_loop_over_tokens(kind: Divergence) -> None:
    student, teacher = (
        token_distribution(torch.randn(7, 5, generator=torch.Generator().manual_seed(seed)), 1.0, torch.tensor([3]))
        for seed in (0, 1)  # token 3 can't be sampled: its probability is 0 on both sides
    )
    expected = [plain(s.exp().tolist(), t.exp().tolist(), kind) for s, t in zip(student, teacher, strict=True)]
    assert divergence(student, teacher, kind).tolist() == pytest.approx(expected, abs=1e-6)
    assert divergence(student, student, kind).tolist() == pytest.approx([0.0] * 7, abs=1e-6)


def scenes(count: int) -> list[Sample]:
    drawn = [draw_scene(random.Random(i), objects=(2, 2)) for i in range(count)]
    return [Sample(i, (image,), i, found[0].label, tuple(found[:1])) for i, (image, found) in enumerate(drawn)]


def test_the_spotlight_shows_the_true_objects_alone() -> None:
    (sample,) = scenes(1)
    before, after = (np.asarray(found.image).astype(int) for found in (sample, spotlight(sample)))
    background = int(np.median(before))
    x0, y0, x1, y1 = (round(value) for value in sample.target[0].box)  # type: ignore[union-attr]
    moved = (before - background + 128).clip(0, 255)
    assert (after[y0:y1, x0:x1] == moved[y0:y1, x0:x1]).all()
    assert (after[y0:y1, x0:x1] != 128).any()
    after[max(y0 - 1, 0) : y1 + 1, max(x0 - 1, 0) : x1 + 1] = 128
    assert (after == 128).all()


def test_answers_begin_with_their_tag() -> None:
    words = {1: "<think>", 2: "</think><ans", 3: "wer>", 4: "x"}
    policy: Any = SimpleNamespace(tokenizer=SimpleNamespace(decode=lambda ids: words[ids[0]]))
    rollout: Any = SimpleNamespace(ids=torch.tensor([[1, 2, 3, 4, 4], [1, 4, 4, 4, 4]]))
    rollout.mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
    assert answer_tokens(policy, rollout).tolist() == [[0, 0, 1, 1, 0], [0, 0, 0, 0, 0]]


@pytest.mark.slow
def test_a_trial_is_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_distillation, "samples_of", lambda *_: (scenes(4), scenes(2)))
    command = ["--methods", "GRPO + distillation, answer", "--seeds", "0", "--seconds", "0.001"]
    command += ["--rows", f"{tmp_path}/rows.jsonl"]
    self_distillation.main(command)
    (row,) = map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines())
    assert (row["method"], row["seed"], row["step"], row["steps"]) == ("GRPO + distillation, answer", 0, 0, 1)
    self_distillation.main(command)
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 1


def test_the_teacher_sees_more(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(self_distillation, "samples_of", lambda *_: ([], scenes(8)))
    self_distillation.main(["--teacher"])
    for line in capsys.readouterr().out.splitlines():
        plain_score, spotlight_score = (float(part.rpartition(" ")[2]) for part in line.split(", ")[-2:])
        assert plain_score < spotlight_score
