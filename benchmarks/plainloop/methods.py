"""Training methods of the plain loop."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Divergence = Literal["forward", "reverse", "js"]
Where = Literal["all", "answer"]
View = Literal["spotlight", "dimmed", "blurred"]


@dataclass(frozen=True)
class Method:
    """A training method.

    Attributes:
        sft, grpo, distill: initial weights of the three losses.
        falling: whether the weight of distillation decreases linearly to 0 over the budget.
        zero_variance: whether to distil only on prompts whose completions all earn the same.
        where: tokens to distil on: all, or those from the answer's opening tag on.
        kind: divergence from the teacher, see `divergence`.
        top: number of most probable tokens to compare, with all others combined; 0: compare all tokens.
        view: view of the teacher, see `privileged`.
        beta: weight of the KL divergence from the base; 0 needs no forward of the base.
        rewards: weights of IoU, confidence and format.
        shuffled: whether to use the samples in epochs instead of drawing each prompt independently.
        count_evaluations: whether the time of evaluations on the fold counts towards the budget.
        patience: end after this many evaluations without a better score; 0: never.
        rate: learning rate.
        prompts: prompts per step.
    """

    sft: float = 0.0
    grpo: float = 0.0
    distill: float = 0.0
    falling: bool = False
    zero_variance: bool = False
    where: Where = "all"
    kind: Divergence = "reverse"
    top: int = 0
    view: View = "spotlight"
    beta: float = 0.0
    rewards: tuple[float, float, float] = (0.5, 3.0, 1.0)
    shuffled: bool = False
    count_evaluations: bool = False
    patience: int = 0
    rate: float = 5e-4
    prompts: int = 8


SFT = Method(sft=1.0, rate=2e-4, prompts=16, patience=8)  # converges long before
GRPO = Method(grpo=1.0)
BOTH = replace(GRPO, distill=1.0, falling=True)
METHODS = {
    "SFT": SFT,
    "SFT, 8 prompts": replace(SFT, prompts=8),
    "SFT, rate 6e-4": replace(SFT, rate=6e-4),
    "GRPO": GRPO,
    "GRPO + 0.1 SFT": replace(GRPO, sft=0.1),
    "GRPO, equal weights": replace(GRPO, rewards=(1.0, 1.0, 1.0)),
    "GRPO, beta 0.04": replace(GRPO, beta=0.04),
    "GRPO, epochs": replace(GRPO, shuffled=True),
    "GRPO, evaluations count": replace(GRPO, count_evaluations=True),
    "GRPO as in the study": replace(GRPO, beta=0.04, shuffled=True, count_evaluations=True, patience=4),
    "distillation": Method(distill=1.0),
    "GRPO + distillation": BOTH,
    "GRPO + distillation, forward": replace(BOTH, kind="forward"),
    "GRPO + distillation, js": replace(BOTH, kind="js"),
    "GRPO + distillation, answer": replace(BOTH, where="answer"),
    "GRPO + distillation, top 8": replace(BOTH, top=8),
    "GRPO + distillation, dimmed": replace(BOTH, view="dimmed"),
    "GRPO + distillation, blurred": replace(BOTH, view="blurred"),
    "GRPO + distillation, zero variance": replace(BOTH, falling=False, zero_variance=True),
    "GRPO + 0.1 distillation": replace(BOTH, distill=0.1, falling=False),
}
