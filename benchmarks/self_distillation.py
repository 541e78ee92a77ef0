"""GRPO, SFT and visual self-distillation in one plain loop, on the few-shot study of detection.

    python benchmarks/self_distillation.py --methods "GRPO" "GRPO + distillation" --shots 4 --seeds 0 1 2

The policy is its own teacher: it sees a privileged view of the image, in which everything but the true objects is
replaced by the background (a spotlight). The loss pulls the distributions of the student's own completions towards the
teacher's. Data, fold, metric and tests are those of `fewshot/studies/detection.yaml`; the loop is plain PyTorch, so
that one setting differs from another by nothing else. `results/self_distillation.md` has what came out.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from fewshot.study import load as load_study
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vrft.boxes import iou_matrix, matched_iou
from vrft.data import SceneData
from vrft.policy import Policy
from vrft.policy.head import logits_of
from vrft.policy.logprobs import token_distribution
from vrft.policy.shared_prefix import group_hidden_states
from vrft.rewards import DetectionConfidence, DetectionIoU, Format, Reward
from vrft.rewards.detection import within_labels
from vrft.rollout import Sampling, SamplingKey, TransformersEngine
from vrft.tasks import DetectionTask
from vrft.training.grpo import group_advantages, zero_variance_groups
from vrft.training.scoring import parse_completions, score_answers
from vrft.types import PromptBatch, Rollout, Sample

Divergence = Literal["forward", "reverse", "js"]
Where = Literal["all", "answer"]

TASK = DetectionTask(template="Detect {query}", confidence_decimals=1)
ENGINE = TransformersEngine()
LIMIT = 64
"""Tokens of a completion."""
WARMUP = 5
"""Steps until the learning rate is reached."""


@dataclass(frozen=True)
class Method:
    """One way to train.

    Attributes:
        sft, grpo, distill: weights of the three losses at the start.
        falling: the weight of distillation falls linearly to 0 over the budget.
        ties: distil only on prompts whose completions all earn the same.
        where: tokens to distil on: all, or those from the answer's tag on.
        kind: divergence from the teacher, see `divergence`.
        beta: weight of the KL divergence from the base; 0 needs no pass of the base.
        rewards: weights of IoU, confidence and format.
        shuffled: go through the samples in epochs; otherwise draw each prompt independently.
        count_looks: evaluations on the fold count towards the budget.
        patience: end after this many looks without a better score; 0: never.
        rate: learning rate.
        prompts: prompts per step.
    """

    sft: float = 0.0
    grpo: float = 0.0
    distill: float = 0.0
    falling: bool = False
    ties: bool = False
    where: Where = "all"
    kind: Divergence = "reverse"
    beta: float = 0.0
    rewards: tuple[float, float, float] = (0.5, 3.0, 1.0)
    shuffled: bool = False
    count_looks: bool = False
    patience: int = 0
    rate: float = 5e-4
    prompts: int = 8


GRPO = Method(grpo=1.0)
METHODS = {
    "SFT": Method(sft=1.0, rate=2e-4, prompts=16),
    "GRPO": GRPO,
    "GRPO, equal weights": replace(GRPO, rewards=(1.0, 1.0, 1.0)),
    "GRPO, beta 0.04": replace(GRPO, beta=0.04),
    "GRPO, epochs": replace(GRPO, shuffled=True),
    "GRPO, looks count": replace(GRPO, count_looks=True, patience=4),
    "GRPO as in the study": replace(GRPO, beta=0.04, shuffled=True, count_looks=True, patience=4),
    "distillation": Method(distill=1.0),
    "GRPO + distillation": replace(GRPO, distill=1.0, falling=True),
    "GRPO + distillation, forward": replace(GRPO, distill=1.0, falling=True, kind="forward"),
    "GRPO + distillation, answer": replace(GRPO, distill=1.0, falling=True, where="answer"),
    "GRPO + distillation, ties": replace(GRPO, distill=1.0, ties=True),
}


def divergence(student: Tensor, teacher: Tensor, kind: Divergence) -> Tensor:
    """Return the divergence of two distributions for each token, in nats.

    reverse: sum of s log(s / t), which the student's own samples estimate; forward: sum of t log(t / s); js: the mean
    of the divergences of s and t from their mixture (On-Policy Distillation, arXiv 2306.13649).

    Args:
        student: log-probabilities s (M, V).
        teacher: log-probabilities t (M, V).
        kind: which divergence.

    Returns:
        Divergences (M,), 0 where the distributions are equal.
    """
    if kind == "reverse":
        return (student.exp() * (student - teacher)).sum(-1)
    if kind == "forward":
        return (teacher.exp() * (teacher - student)).sum(-1)
    mixture = torch.logaddexp(student, teacher) - np.log(2)
    return (divergence(student, mixture, "reverse") + divergence(teacher, mixture, "reverse")) / 2


def spotlight(sample: Sample, ground: int = 128) -> Sample:
    """Return a sample whose image shows the true objects alone, on a ground of the given grey.

    Boxes keep their places. The image's median is its background; all pixels move by what sets it apart from `ground`.
    """
    pixels = np.asarray(sample.image).astype(int)
    median = np.median(pixels.reshape(-1, 3), 0).astype(int)
    shown = np.zeros(pixels.shape[:2], bool)
    assert not isinstance(sample.target, str)
    for true in sample.target:
        x0, y0, x1, y1 = (round(value) for value in true.box)
        shown[max(y0 - 1, 0) : y1 + 1, max(x0 - 1, 0) : x1 + 1] = True
    moved = np.where(shown[..., None], pixels, median) - median + ground
    return replace(sample, images=(Image.fromarray(moved.clip(0, 255).astype("uint8")),))


def answer_tokens(policy: Policy, rollout: Rollout) -> Tensor:
    """Return a mask (N, T) of the tokens from the answer's opening tag on."""
    mask = torch.zeros_like(rollout.mask)
    for row, ids in enumerate(rollout.ids.tolist()):
        text = ""
        for position, token in enumerate(ids):
            text += policy.tokenizer.decode([token])
            if "<answer>" in text:
                mask[row, position:] = 1
                break
    return mask * rollout.mask


def distributions(policy: Policy, batch: PromptBatch, rollout: Rollout) -> Tensor:
    """Return the log-probabilities of all real completion tokens, row after row (M, V)."""
    hidden = group_hidden_states(policy.base, batch.inputs, rollout.ids, rollout.mask.sum(1).tolist())
    return token_distribution(logits_of(policy.base)(hidden), 1.0, policy.banned_ids)


class Losses:
    """The losses of one step."""

    def __init__(self, policy: Policy, base: Policy | None, method: Method, seed: int) -> None:
        self.policy, self.base, self.method, self.seed = policy, base, method, seed
        kinds: list[Callable[..., Reward]] = [DetectionIoU, DetectionConfidence, Format]
        pairs = zip(("iou", "confidence", "format"), kinds, method.rewards, strict=True)
        self.rewards = {name: kind(weight=weight) for name, kind, weight in pairs}
        self.encode = policy.encoder(TASK)

    def cross_entropy(self, samples: list[Sample]) -> Tensor:
        """Return the cross-entropy of target texts, averaged over their tokens."""
        policy, batch = self.policy, self.encode(samples)
        texts = [TASK.target_text(sample, frame) for sample, frame in zip(samples, batch.frames, strict=True)]
        end = policy.tokenizer.eos_token_id
        rows = [torch.tensor([*policy.tokenizer(text, add_special_tokens=False)["input_ids"], end]) for text in texts]
        ids, mask = pad_sequence(rows, True), pad_sequence([torch.ones_like(row) for row in rows], True)  # (P, T)
        learnt = mask * ~torch.isin(ids, policy.banned_ids)
        log_probs, _ = policy(batch.inputs, ids, mask, 1.0, entropy=False)
        return -(log_probs * learnt).sum() / learnt.sum()

    def on_policy(self, samples: list[Sample], step: int, weight: float) -> Tensor:
        """Return GRPO's loss plus `weight` times that of distillation, on completions of the policy itself."""
        policy, method, batch = self.policy, self.method, self.encode(samples)
        rollout = generate(policy, batch, 8, Sampling(), SamplingKey(self.seed, step))
        answers, scored = parse_completions(TASK, rollout, batch)
        total = score_answers(self.rewards, answers, scored, policy.device)[1].view(-1, 8)  # (P, G)
        real = rollout.mask.bool()
        student = distributions(policy, batch, rollout)  # (M, V)
        log_probs = student.gather(-1, rollout.ids[real][:, None])[:, 0]  # (M,)
        row = torch.arange(len(real))[:, None].expand_as(real)[real]  # (M,)
        share = 1 / (rollout.mask.sum(1)[row] * len(real))  # a mean over rows of means over tokens
        advantages = group_advantages(total).flatten()[row]
        loss = -method.grpo * ((log_probs - log_probs.detach()).exp() * advantages * share).sum()
        if method.beta:
            assert self.base is not None
            with torch.no_grad():
                reference, _ = self.base(batch.inputs, rollout.ids, rollout.mask, 1.0, entropy=False)
            gap = reference[real] - log_probs
            loss = loss + method.beta * ((gap.exp() - gap - 1) * share).sum()
        if weight:
            chosen = answer_tokens(policy, rollout) if method.where == "answer" else rollout.mask
            if method.ties:
                chosen = chosen * zero_variance_groups(total).repeat_interleave(8)[:, None]
            with torch.no_grad():
                teacher = distributions(policy, self.encode([spotlight(sample) for sample in samples]), rollout)
            loss = loss + weight * (divergence(student, teacher, method.kind) * share * chosen[real]).sum()
        return loss


def generate(policy: Policy, batch: PromptBatch, count: int, sampling: Sampling, key: SamplingKey) -> Rollout:
    return ENGINE.generate(
        policy, batch, count, max_completion_length=LIMIT, sampling=sampling, key=key, on_token=lambda *_: None
    )


@torch.no_grad()
def mean_iou(policy: Policy, samples: Sequence[Sample]) -> float:
    """Return the study's metric, mIoU as in `CocoEvaluator`, of greedy answers."""
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
    method: Method, pool: list[Sample], fold: list[Sample], seconds: float, seed: int
) -> tuple[Policy, dict[str, Any]]:
    """Train within a budget of CPU-seconds, and return the policy with the best look at the fold."""
    policy, base = fresh(), fresh().eval() if method.beta else None
    losses, rng, now = Losses(policy, base, method, seed), random.Random(seed), time.process_time
    optimizer = torch.optim.AdamW(policy.parameters(), lr=method.rate, betas=(0.9, 0.99), weight_decay=0.0)
    looks, best = [mean_iou(policy, fold)], copy.deepcopy(policy.state_dict())
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
            looks.append(mean_iou(policy, fold))
            if looks[-1] > max(looks[:-1]):
                best = copy.deepcopy(policy.state_dict())
            if not method.count_looks:
                started += now() - before
            if method.patience and len(looks) - 1 - looks.index(max(looks)) >= method.patience:
                break
    policy.load_state_dict(best)
    found = {"step": 8 * looks.index(max(looks)), "steps": step, "fold": round(max(looks), 4)}
    return policy.eval(), found | {"seconds": round(now() - started, 1), "looks": [round(look, 4) for look in looks]}


def fresh() -> Policy:
    policy = Policy("tiny-clean", dtype="float32")
    policy.load(keep_reference=False)
    return policy


def samples_of(settings: dict[str, Any], folder: Path, shots: int | None, seed: int) -> tuple[list[Sample], ...]:
    """Return training and held-out samples of the study's data with changed settings."""
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


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[*METHODS], metavar="METHOD")
    parser.add_argument("--shots", type=int, nargs="+", default=[4])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--seconds", type=float, default=24.0, help="CPU-seconds of a trial")
    parser.add_argument("--teacher", action="store_true", help="score the base with and without its privileged view")
    parser.add_argument("--data", type=Path, default=Path("runs/few_shot/data"), help="folder of the study's images")
    parser.add_argument("--rows", type=Path, default=Path("runs/self_distillation.jsonl"), help="finished trials")
    chosen = parser.parse_args(args)
    study = load_study("ablation_time")
    rows = [json.loads(line) for line in chosen.rows.read_text().splitlines()] if chosen.rows.exists() else []
    tests = {
        name: samples_of(study.settings | settings, chosen.data, None, 0)[1] for name, settings in study.tests.items()
    }
    if chosen.teacher:
        for test, samples in tests.items():
            scores = [mean_iou(fresh(), found) for found in (samples, [spotlight(sample) for sample in samples])]
            print(f"{test}: plain {scores[0]:.3f}, spotlight {scores[1]:.3f}", flush=True)
        return
    chosen.rows.parent.mkdir(parents=True, exist_ok=True)
    for seed in chosen.seeds:
        for shots in chosen.shots:
            pool, fold = samples_of(study.settings | study.fold, chosen.data, shots, seed)
            for name in chosen.methods:
                key = {"method": name, "shots": shots, "seed": seed, "budget": chosen.seconds}
                if any(row.items() >= key.items() for row in rows):
                    continue
                policy, found = train(METHODS[name], pool, fold, chosen.seconds, seed)
                found |= {test: round(mean_iou(policy, samples), 4) for test, samples in tests.items()}
                with chosen.rows.open("a") as file:
                    print(json.dumps(key | found), file=file)
                print(json.dumps(key | found), flush=True)


if __name__ == "__main__":
    main()
