"""Does a policy that judges itself drift? Digits without labels, judged by the reference or by the policy as it is.

    python benchmarks/self_preference.py --seeds 1

The built-in digits policy first learns to judge: it is asked whether an answer about a rendered digit is good, and the
answer names another digit half of the time. Then RFT on real scans, whose labels are only logged, rewards answers that
the judge approves of. Four CPU-minutes a seed.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from torch.utils.data import Dataset

from vrft.__main__ import main as vrft
from vrft.data.datasets.digits import DIGIT_NAMES, RenderedDigitData, RenderedDigits
from vrft.rewards import SelfPreference
from vrft.tasks import ClassificationTask
from vrft.types import Frame, Question, Sample

ASK = "{question} {completion} is the digit"
APPROVAL, DISAPPROVAL = "This", "No"
"""Replies that the built-in policy's tokenizer has."""

METHODS = {
    "reference": ("reference", 0.04),
    "policy": ("policy", 0.04),
    "policy, almost free": ("policy", 0.001),
}
"""Judge and weight of the KL term."""


class JudgingTask(ClassificationTask):
    """Classifies digits, and judges the answers that a query has."""

    def question(self, sample: Question, frame: Frame) -> str:
        return sample.query or super().question(sample, frame)

    def target_text(self, sample: Question, frame: Frame) -> str:
        return str(sample.target) if sample.query else super().target_text(sample, frame)


class Judgements(Dataset[Sample]):
    """Rendered digits; every second one comes with an answer to judge."""

    def __init__(self, digits: RenderedDigits) -> None:
        self.digits, self.task = digits, ClassificationTask("Classify the digit")
        self.reward = SelfPreference(question=ASK, approval=APPROVAL, disapproval=DISAPPROVAL)

    def __len__(self) -> int:
        return len(self.digits)

    def __getitem__(self, index: int) -> Sample:
        sample = self.digits[index]
        if index % 2 == 0:
            return sample
        right = index % 4 == 1
        place = DIGIT_NAMES.index(str(sample.target))
        claimed = DIGIT_NAMES[place if right else (place + 1 + index // 4 % 9) % 10]
        claim = Sample(index, sample.images, index, "", claimed)
        frame = Frame(1000, 1000)
        text = self.reward.text(self.task.question(claim, frame), self.task.target_text(claim, frame))
        return Sample(index, sample.images, index, text, APPROVAL if right else DISAPPROVAL)


class JudgementData(RenderedDigitData):
    """A stream of digits to classify and of answers to judge."""

    def train_set(self) -> Judgements:  # type: ignore[override]
        return Judgements(super().train_set())


def teach(folder: Path, steps: int) -> Path:
    """Train the built-in policy to judge too, and return the exported folder."""
    run = folder / "judge"
    if not (run / "export").exists():
        own = Path(__file__).stem
        words = ["fit", "--config", "tiny/digits", f"--task={own}.JudgingTask", f"--data={own}.JudgementData"]
        words += ["--task.template=Classify the digit", "--data.batch_size=32", f"--trainer.max_steps={steps}"]
        words += ["--model.policy.checkpoint=tiny-digits", "--model.optimizer.lr=1e-3", f"--run_dir={run}"]
        assert vrft([*words, f"--data.steps={steps}", "--trainer.val_check_interval=100"]) == 0
    return run / "export"


def tune(folder: Path, checkpoint: Path, method: str, seed: int, steps: int) -> Path:
    """Train on scans by the judge's approval, and return the run's folder."""
    judge, beta = METHODS[method]
    run = folder / f"{method.replace(', ', '-').replace(' ', '-')}-{seed}"
    if not (run / "summary.json").exists():
        reward = f"{{class_path: SelfPreference, init_args: {{judge: {judge}, question: '{ASK}', "
        reward += f"approval: {APPROVAL}, disapproval: '{DISAPPROVAL}'}}}}"
        words = ["fit", "--config", "digits", f"--model.policy.checkpoint={checkpoint}", f"--model.beta={beta}"]
        words += [f"--model.rewards.self={reward}", "--model.rewards.accuracy.weight=0", "--data.shots=null"]
        words += [f"--seed_everything={seed}", f"--trainer.max_steps={steps}", f"--run_dir={run}"]
        words += [f"--trainer.val_check_interval={steps // 5}", "--model.rewards.format.weight=0.2"]
        assert vrft([*words, "--trainer.enable_progress_bar=false"]) == 0
    return run


def columns(run: Path, *names: str) -> list[tuple[int, list[str]]]:
    """Return the rows of metrics.csv that have all names, with their steps."""
    with next(run.glob("*/version_*/metrics.csv")).open() as file:
        rows = [*csv.DictReader(file)]
    return [(int(row["step"]), [row[name] for name in names]) for row in rows if all(row.get(name) for name in names)]


def report(run: Path, method: str, seed: int) -> list[str]:
    """Return lines of a Markdown table: accuracy on held-out scans beside what the judge says."""
    said = columns(run, "train/reward/self", "train/self_preference_gap")
    lines = []
    for step, (accuracy,) in columns(run, "val/accuracy"):
        near = [values for other, values in said if step - 10 < other <= step] or [said[0][1]]
        own, gap = (sum(float(values[i]) for values in near) / len(near) for i in (0, 1))
        lines.append(f"| {method} | {seed} | {step} | {own:.3f} | {gap:+.3f} | {float(accuracy):.3f} |")
    return lines


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/self_preference"), help="folder of the runs")
    parser.add_argument("--seeds", type=int, default=1, help="seeds of the runs")
    parser.add_argument("--judge_steps", type=int, default=300, help="steps in which the policy learns to judge")
    parser.add_argument("--steps", type=int, default=100, help="steps of RFT")
    arguments = parser.parse_args()
    checkpoint = teach(arguments.folder, arguments.judge_steps)
    print("| judge | seed | step | P(yes) of its own answers | gap | accuracy |")
    print("|--|--|--|--|--|--|")
    for seed in range(arguments.seeds):
        for method in METHODS:
            run = tune(arguments.folder, checkpoint, method, seed, arguments.steps)
            print("\n".join(report(run, method, seed)), flush=True)


if __name__ == "__main__":
    main()
