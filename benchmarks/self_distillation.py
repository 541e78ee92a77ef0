"""Compare GRPO, SFT and visual self-distillation in one plain loop, on the few-shot detection studies.

    python benchmarks/self_distillation.py --methods "GRPO" "GRPO + distillation" --shots 4 --seeds 0 1 2

The policy is its own teacher: as the teacher, it sees a privileged view of the image, in which everything but the true
objects is replaced by the background (a spotlight), dimmed or blurred. The loss pulls the student's distributions on
its own completions towards the teacher's. Data, fold, metric and tests are those of `fewshot/studies/detection.yaml` or
`open_vocabulary.yaml`. The loop is plain PyTorch, so that methods differ only in their settings.
Finished trials are kept in a table, and only missing trials are run. `results/self_distillation.md` has the results.
"""

from __future__ import annotations

import argparse
import copy
import os
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from fewshot.report import head, line
from fewshot.study import Study
from fewshot.study import load as load_study
from plainloop.losses import TASK, Losses, generate
from plainloop.methods import METHODS, Method, View
from plainloop.summary import Row, add_row, read_rows, summary
from plainloop.views import KNOWN_GREY, privileged

from vrft.boxes import iou_matrix, matched_iou
from vrft.data import SceneData
from vrft.policy import Policy
from vrft.rewards.detection import within_labels
from vrft.rollout import Sampling, SamplingKey
from vrft.training.scoring import parse_completions
from vrft.types import Sample

STUDIES = {"detection": "ablation_time", "open_vocabulary": "open_vocabulary"}
"""Studies, each with the name of the file that defines its tests."""
WARMUP = 5
"""Number of warm-up steps of the learning rate."""
NOTES: dict[str, int | None] = {"": KNOWN_GREY, ", background not shifted": None}
"""Suffixes of columns in the teacher's table, with the grey to which the background is shifted."""


@torch.no_grad()
def mean_iou(policy: Policy, samples: Sequence[Sample]) -> float:
    """Return mIoU, the study's metric, of greedy answers, as in `CocoEvaluator`."""
    total = 0.0
    for start in range(0, len(samples), 64):
        batch = policy.encoder(TASK)(samples[start : start + 64])
        rollout = generate(policy, batch, 1, Sampling(greedy=True), SamplingKey(0, 0))
        for answer, sample in zip(*parse_completions(TASK, rollout, batch), strict=True):
            boxes = answer.value if isinstance(answer.value, tuple) else ()
            assert not isinstance(sample.target, str)
            overlaps = within_labels(boxes, sample.target, iou_matrix)
            total += matched_iou(overlaps, [1.0 if box.score is None else box.score for box in boxes])
    return total / len(samples)


def train(
    method: Method, checkpoint: str, pool: list[Sample], fold: list[Sample], seconds: float, seed: int
) -> tuple[Policy, dict[str, Any]]:
    """Train within a budget of CPU-seconds. Return the policy with the best score on the fold, and the result."""
    policy, base = fresh(checkpoint), fresh(checkpoint).eval() if method.beta else None
    losses, rng, now = Losses(policy, base, method, seed), random.Random(seed), time.process_time
    optimizer = torch.optim.AdamW(policy.parameters(), lr=method.rate, betas=(0.9, 0.99), weight_decay=0.0)
    scores, best = [mean_iou(policy, fold)], copy.deepcopy(policy.state_dict())
    order: list[Sample] = []
    started, step = now(), 0
    while (spent := now() - started) < seconds:
        for group in optimizer.param_groups:
            group["lr"] = method.rate * min(1.0, (step + 1) / WARMUP)
        if method.shuffled and len(order) < method.prompts:
            order += rng.sample(pool, len(pool))
        batch = [order.pop(0) if method.shuffled else rng.choice(pool) for _ in range(method.prompts)]
        policy.train()
        weight = method.distill * (1 - spent / seconds if method.falling else 1)
        loss = method.sft * losses.cross_entropy(batch) if method.sft else torch.zeros(())
        if method.grpo or method.distill:
            loss = loss + losses.on_policy(batch, step, weight)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 8 == 0:
            before = now()
            scores.append(mean_iou(policy, fold))
            if scores[-1] > max(scores[:-1]):
                best = copy.deepcopy(policy.state_dict())
            if not method.count_evaluations:
                started += now() - before
            if method.patience and len(scores) - 1 - scores.index(max(scores)) >= method.patience:
                break
    policy.load_state_dict(best)
    found = {"step": 8 * scores.index(max(scores)), "steps": step, "fold": round(max(scores), 4)}
    found |= {"seconds": round(now() - started, 1), "evaluations": [round(score, 4) for score in scores]}
    return policy.eval(), found


def fresh(checkpoint: str) -> Policy:
    policy = Policy(checkpoint, dtype="float32")
    policy.load(keep_reference=False)
    return policy


def samples_of(settings: dict[str, Any], folder: Path, shots: int | None, seed: int) -> tuple[list[Sample], ...]:
    """Return the training and held-out samples of the study's data with some settings changed."""
    settings = {
        key.removeprefix("data."): str(folder / Path(value).name) if "/" in str(value) else value
        for key, value in settings.items()
        if key.startswith("data.")
    }
    data = SceneData(**settings, shots=shots, seed=seed)
    data.prepare_data()
    asking = SimpleNamespace(task=TASK)
    data.trainer = SimpleNamespace(default_root_dir=str(folder), lightning_module=asking)  # type: ignore[assignment]
    data.setup("fit")
    return tuple([found[i] for i in range(len(found))] for found in (data.train_set(), data.val_set()))


def tests_of(study: Study, data: Path) -> dict[str, list[Sample]]:
    return {name: samples_of(study.settings | settings, data, None, 0)[1] for name, settings in study.tests.items()}


def score_teacher(checkpoint: str, tests: dict[str, list[Sample]]) -> None:
    """Print the base's scores with each privileged view."""
    policy = fresh(checkpoint)
    views = [(f"{view}{note}", view, grey) for note, grey in NOTES.items() for view in get_args(View)]
    print("\n".join(head(["test", "plain", *(name for name, *_ in views)])))
    for test, samples in tests.items():
        scores = [mean_iou(policy, samples)]
        scores += [mean_iou(policy, [privileged(sample, view, grey) for sample in samples]) for _, view, grey in views]
        print(line([test, *(f"{score:.3f}" for score in scores)]), flush=True)


def run_missing(study: Study, missing: list[Row], data: Path, table: Path) -> None:
    """Run trials, and add each to the table when it is finished."""
    checkpoint, tests = study.settings["model.policy.checkpoint"], tests_of(study, data)
    for key in missing:
        pool, fold = samples_of(study.settings | study.fold, data, key["shots"], key["seed"])
        policy, found = train(METHODS[key["method"]], checkpoint, pool, fold, key["budget"], key["seed"])
        found |= {test: round(mean_iou(policy, samples), 4) for test, samples in tests.items()}
        add_row(key | found, table)
        print(key | found, flush=True)


def matching(key: Row, rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.items() >= key.items()]


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", choices=STUDIES, default="detection")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[*METHODS], metavar="METHOD")
    parser.add_argument("--shots", type=int, nargs="+", default=[4])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--seconds", type=float, default=24.0, help="CPU-seconds of a trial")
    parser.add_argument("--teacher", action="store_true", help="score the base with and without its privileged views")
    parser.add_argument("--data", type=Path, default=Path("runs/few_shot/data"), help="folder of the study's images")
    parser.add_argument("--table", type=Path, default=Path("runs/self_distillation.csv"), help="finished trials")
    chosen = parser.parse_args(args)
    study = load_study(STUDIES[chosen.study])
    if chosen.teacher:
        score_teacher(study.settings["model.policy.checkpoint"], tests_of(study, chosen.data))
        return
    keys: list[Row] = [
        {"study": chosen.study, "method": name, "shots": shots, "seed": seed, "budget": chosen.seconds}
        for seed in dict.fromkeys(chosen.seeds)
        for shots in dict.fromkeys(chosen.shots)
        for name in dict.fromkeys(chosen.methods)
    ]
    rows = read_rows(chosen.table)
    if missing := [key for key in keys if not matching(key, rows)]:
        run_missing(study, missing, chosen.data, chosen.table)
        rows = read_rows(chosen.table)
    print("\n".join(summary([matching(key, rows)[0] for key in keys], ("fold", *study.tests))))


if __name__ == "__main__":
    main()
