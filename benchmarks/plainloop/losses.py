"""Losses of the plain loop: cross-entropy, GRPO, and the divergence from a teacher with a privileged view."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from plainloop.methods import Divergence, Method
from plainloop.views import privileged
from vrft.policy import Policy
from vrft.policy.head import logits_of
from vrft.policy.logprobs import token_distribution
from vrft.policy.shared_prefix import group_hidden_states
from vrft.rewards import DetectionConfidence, DetectionIoU, Format, Reward
from vrft.rollout import Sampling, SamplingKey, TransformersEngine
from vrft.tasks import DetectionTask
from vrft.training.grpo import group_advantages, zero_variance_groups
from vrft.training.scoring import parse_completions, score_answers
from vrft.types import PromptBatch, Rollout, Sample

TASK = DetectionTask(template="Detect {query}", confidence_decimals=1)
ENGINE = TransformersEngine()
LIMIT = 64
"""Maximum number of tokens of a completion."""


def divergence(student: Tensor, teacher: Tensor, kind: Divergence) -> Tensor:
    """Return the divergence of two distributions for each token, in nats.

    reverse: sum of s log(s / t); forward: sum of t log(t / s); js: the mean of the divergences of s and t from their
    mixture (On-Policy Distillation, arXiv 2306.13649).

    Args:
        student: log-probabilities of s, (M, V).
        teacher: log-probabilities of t, (M, V).
        kind: kind of divergence.

    Returns:
        Divergences, (M,), 0 where the distributions are equal.
    """
    if kind == "reverse":
        return (student.exp() * (student - teacher)).sum(-1)
    if kind == "forward":
        return (teacher.exp() * (teacher - student)).sum(-1)
    mixture = torch.logaddexp(student, teacher) - np.log(2)
    return (divergence(student, mixture, "reverse") + divergence(teacher, mixture, "reverse")) / 2


def probable(student: Tensor, teacher: Tensor, kind: Divergence, top: int) -> tuple[Tensor, Tensor]:
    """Return both log-probabilities of the `top` most probable tokens and of all others combined, (M, top + 1).

    The most probable tokens are the student's for the reverse divergence, otherwise the teacher's. The divergence of
    the result is at most that over all tokens, and 0 where the distributions are equal.
    """
    chosen = (student if kind == "reverse" else teacher).topk(top).indices

    def merged(log_probs: Tensor) -> Tensor:
        others = log_probs.scatter(-1, chosen, -torch.inf).logsumexp(-1, keepdim=True)
        return torch.cat([log_probs.gather(-1, chosen), others], -1)

    return merged(student), merged(teacher)


def answer_tokens(policy: Policy, rollout: Rollout) -> Tensor:
    """Return a mask of the tokens from the answer's opening tag on, (N, T)."""
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
    """Return the log-probabilities at all real completion tokens, concatenated over rows, (M, V)."""
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
        """Return GRPO's loss plus `weight` times the distillation loss, on completions of the policy."""
        policy, method, batch = self.policy, self.method, self.encode(samples)
        rollout = generate(policy, batch, 8, Sampling(), SamplingKey(self.seed, step))
        answers, scored = parse_completions(TASK, rollout, batch)
        total = score_answers(self.rewards, answers, scored, policy.device)[1].view(-1, 8)  # (P, G)
        real = rollout.mask.bool()
        student = distributions(policy, batch, rollout)  # (M, V)
        log_probs = student.gather(-1, rollout.ids[real][:, None])[:, 0]  # (M,)
        row = torch.arange(len(real))[:, None].expand_as(real)[real]  # (M,)
        share = 1 / (rollout.mask.sum(1)[row] * len(real))  # mean over rows of the means over tokens
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
            if method.zero_variance:
                chosen = chosen * zero_variance_groups(total).repeat_interleave(8)[:, None]
            if chosen.any():
                apart = self.distance(student, samples, rollout)  # (M,)
                loss = loss + weight * (apart * share * chosen[real]).sum()
        return loss

    def distance(self, student: Tensor, samples: list[Sample], rollout: Rollout) -> Tensor:
        """Return the divergence of the student, (M, V), from the teacher at each completion token, (M,)."""
        method, seen = self.method, [privileged(sample, self.method.view) for sample in samples]
        with torch.no_grad():
            teacher = distributions(self.policy, self.encode(seen), rollout)
        if method.top:
            student, teacher = probable(student, teacher, method.kind, method.top)
        return divergence(student, teacher, method.kind)


def generate(policy: Policy, batch: PromptBatch, count: int, sampling: Sampling, key: SamplingKey) -> Rollout:
    return ENGINE.generate(
        policy, batch, count, max_completion_length=LIMIT, sampling=sampling, key=key, on_token=lambda *_: None
    )
