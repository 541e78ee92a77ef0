"""The questions by which the study of self-preference teaches a policy to judge."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import self_preference as study
from PIL import Image
from self_preference_results import draw, print_pairs

from vrft.data.datasets.digits import RenderedDigits
from vrft.policy import Policy
from vrft.types import Frame


def test_half_of_the_answers_to_judge_are_right_and_the_policy_knows_all_words() -> None:
    digits = RenderedDigits(40, seed=3)
    samples = [study.Judgements(digits)[i] for i in range(40)]
    asked = [(sample, digits[i].target) for i, sample in enumerate(samples) if sample.query]
    assert len(asked) == 20
    for sample, truth in asked:
        right = f"<answer>{truth}</answer>" in sample.query
        assert sample.target == (study.APPROVAL if right else study.DISAPPROVAL)
    assert sum(sample.target == study.APPROVAL for sample, _ in asked) == 10
    policy = Policy("tiny-digits")
    policy.read(keep_reference=False)
    task, frame = study.JudgingTask("Classify the digit"), Frame(1000, 1000)
    texts = [text for one in samples for text in (task.question(one, frame), task.target_text(one, frame))]
    ids = policy.tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert policy.tokenizer.unk_token_id not in [i for row in ids for i in row]


def test_evaluations_and_warnings_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    method = "policy, beta 0.001"
    run = study.run_of(tmp_path, method, 0)
    logs = run / "logs" / "version_0"
    logs.mkdir(parents=True)
    lines = ["step,train/self_preference_gap,val/reward/self,val/accuracy", "0,,0.5,0.6"]
    lines += [f"{step},{0.4 if step < 20 else 0.1}," + ("0.9,0.3" if step == 29 else ",") for step in range(30)]
    (logs / "metrics.csv").write_text("\n".join(lines))
    (run / "warnings.jsonl").write_text('{"step": 4, "guard": "no_format"}\n{"step": 12, "guard": "overfitting"}\n')
    found = study.evaluations_of(run, method, 0)
    assert [look[2:5] for look in found] == [(0, 0.5, 0.6), (29, 0.9, 0.3)]
    assert found[1].gap == pytest.approx(0.1)
    study.print_runs(found, tmp_path)  # the gap's mean over ten steps falls below 0.2 with the seventh of 0.1
    assert capsys.readouterr().out.splitlines()[2:] == [
        f"| {method} | 0 | 0.500 → 0.900 | 0.600 → 0.300 | 0.600 (step 0) | 26 | 12 |"
    ]
    draw(found, {0: {"pass": {1: 0.5, 2: 0.6}, "vote": {1: 0.5, 2: 0.5}}}, tmp_path / "picture.png")
    assert Image.open(tmp_path / "picture.png").width > 300
    answers = run / "evaluation" / "val-0" / "answers.jsonl"
    answers.parent.mkdir(parents=True)
    rows = [(0.9, True, 1.0), (0.4, True, 1.0), (0.6, False, 0.0), (0.1, False, 0.0), (0.2, True, 0.0)]
    lines = [json.dumps({"reward": p + 0.2 * valid, "valid": valid, "score": score}) for p, valid, score in rows]
    answers.write_text("\n".join(lines))
    right, wrong = study.own_answers(run)
    assert (right, wrong) == (pytest.approx([0.9, 0.4]), pytest.approx([0.6, 0.1, 0.2]))
    print_pairs("scans", right, wrong)
    assert capsys.readouterr().out == "| scans | 2 | 3 | 0.583 | 0.833 | 0.650 | 0.300 |\n"
