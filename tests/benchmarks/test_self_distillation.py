"""Visual self-distillation: divergences against a plain loop, the privileged view, and a trial of one step."""

from __future__ import annotations

import math
import random
import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import self_distillation
import torch
from PIL import ImageFilter
from plainloop.losses import answer_tokens, divergence, probable
from plainloop.methods import Divergence, View
from plainloop.summary import add_row, read_rows, summary
from plainloop.views import BLUR, DIMMED, privileged
from scipy import stats

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


@pytest.mark.parametrize("kind", ["forward", "reverse", "js"])
def test_improbable_tokens_are_compared_as_one(kind: Divergence) -> None:
    logits = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(2))
    student, teacher = (token_distribution(found, 1.0, torch.tensor([3])) for found in logits)
    expected = []
    for s, t in zip(student.exp().tolist(), teacher.exp().tolist(), strict=True):
        judge = s if kind == "reverse" else t
        kept = sorted(range(5), key=lambda token: -judge[token])[:2]
        expected.append(plain(*([*(p[i] for i in kept), 1 - sum(p[i] for i in kept)] for p in (s, t)), kind))
    found = divergence(*probable(student, teacher, kind, 2), kind)
    assert found.tolist() == pytest.approx(expected, abs=1e-6)
    assert (found <= divergence(student, teacher, kind) + 1e-6).all()


def scenes(count: int) -> list[Sample]:
    drawn = [draw_scene(random.Random(i), objects=(2, 2)) for i in range(count)]
    return [Sample(i, (image,), i, found[0].label, tuple(found[:1])) for i, (image, found) in enumerate(drawn)]


@pytest.mark.parametrize("grey", [128, None])
@pytest.mark.parametrize("view", ["spotlight", "dimmed", "blurred"])
def test_the_teacher_sees_the_true_objects_and_less_of_the_rest(view: View, grey: int | None) -> None:
    (sample,) = scenes(1)
    before, after = (np.asarray(found.image).astype(int) for found in (sample, privileged(sample, view, grey)))
    background = int(np.median(before))
    shift = 0 if grey is None else grey - background
    x0, y0, x1, y1 = (round(value) for value in sample.target[0].box)  # type: ignore[union-attr]
    shown = np.s_[max(y0 - 1, 0) : y1 + 1, max(x0 - 1, 0) : x1 + 1]
    rest = {
        "spotlight": np.full_like(before, background),
        "dimmed": background + DIMMED * (before - background),
        "blurred": np.asarray(sample.image.filter(ImageFilter.GaussianBlur(BLUR))).astype(float),
    }[view]
    rest[shown] = before[shown]
    assert (after == (rest + shift).clip(0, 255).round()).all()
    assert (after[shown] != background + shift).any()


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
    command += ["--table", f"{tmp_path}/runs/trials.csv"]
    self_distillation.main(command)
    (row,) = read_rows(tmp_path / "runs" / "trials.csv")
    assert (row["method"], row["seed"], row["step"], row["steps"]) == ("GRPO + distillation, answer", 0, 0, 1)
    monkeypatch.setattr(self_distillation, "train", None)
    self_distillation.main(command)
    assert read_rows(tmp_path / "runs" / "trials.csv") == [row]


def test_tables_of_trials_are_read_as_they_were_written(tmp_path: Path) -> None:
    key = {"study": "detection", "method": "GRPO, epochs", "shots": 4, "seed": 1, "budget": 24.0, "step": 8, "steps": 9}
    rows = [{**key, "novel": 0.5}, {**key, "seed": 0, "evaluations": [0.0751, 0.1]}, {**key, "shots": 1, "known": 1e-5}]
    for row in rows:
        add_row(row, tmp_path / "trials.csv")
    assert read_rows(tmp_path / "trials.csv") == [rows[2], rows[1], rows[0]]


ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "benchmarks" / "results" / "self_distillation.md").read_text()
TABLES = re.findall(r"```sh\npython benchmarks/self_distillation.py ([^`]+)\n```\n\n((?:\|[^\n]+\n)+)", PAGE)
"""Commands of the results, each with the table below it."""


def test_each_table_of_the_results_has_its_command() -> None:
    assert len(TABLES) == PAGE.count("\n|--|") == PAGE.count("```sh")


@pytest.mark.parametrize(("command", "table"), [found for found in TABLES if "--teacher" not in found[0]])
def test_the_tables_of_the_results_are_those_of_their_commands(
    command: str, table: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(self_distillation, "run_missing", None)  # all trials are there
    self_distillation.main(shlex.split(command.replace("\\\n", " ")))
    assert capsys.readouterr().out == table


def test_the_teacher_sees_more(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(self_distillation, "samples_of", lambda *_: ([], scenes(6)[4:]))
    self_distillation.main(["--teacher"])
    names, _, *lines = (line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines())
    assert len(lines) == 2
    for line in lines:
        scores = dict(zip(names, line, strict=True))
        assert len(scores) == 8
        assert float(scores["plain"]) < float(scores["spotlight"])


def test_the_summary_compares_each_method_with_the_first() -> None:
    scores = {"SFT": [0.1, 0.2, 0.3], "GRPO": [0.2, 0.3, 0.5]}
    rows = [
        {"method": name, "shots": 4, "seed": seed, "steps": 16, "step": 8, "fold": found[seed]}
        for seed in (2, 0, 1)  # the order of seeds does not matter
        for name, found in scores.items()
    ]
    found = stats.ttest_rel(scores["GRPO"], scores["SFT"])
    low, high = found.confidence_interval(0.95)
    start, end = "| 4 | GRPO | 3 | 16 | 8 | 0.333 ± ", f" | +0.133 [{low:+.3f}, {high:+.3f}], p = {found.pvalue:.3f} |"
    assert summary(rows, ["fold"])[-1].startswith(start)
    assert summary(rows, ["fold"])[-1].endswith(end)
    few = summary([row for row in rows if row["seed"] < 2], ["fold"])
    assert few[-2:] == ["| 4 | SFT | 2 | 16 | 8 | 0.150 |  |", "| 4 | GRPO | 2 | 16 | 8 | 0.250 | +0.100, +0.100 |"]
    alone = summary([row for row in rows if row["method"] == "SFT"], ["fold"])
    assert alone[0] == "| shots | method | seeds | steps | best step | fold |"
