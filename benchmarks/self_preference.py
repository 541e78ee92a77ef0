"""Test whether a policy that judges itself drifts, on digits without labels, judged by the reference or the policy.

    python benchmarks/self_preference.py --seeds 3

The built-in digits policy first learns to judge: it is asked whether an answer about a rendered digit is good, where
half of the answers name another digit. Its judgements are checked on held-out pairs. Then RFT on real scans, whose
labels are only logged, rewards answers that the judge approves of. Finally, the policy before RFT answers each held-out
scan 16 times, and its judgement selects one of the answers. Writes self_preference.csv and .png, and prints tables.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image
from self_preference_results import Evaluation, draw, print_pairs
from torch.utils.data import Dataset

from vrft.__main__ import main as vrft
from vrft.data import DigitsData
from vrft.data.datasets.digits import DIGIT_NAMES, RenderedDigitData, RenderedDigits
from vrft.guards import Observation
from vrft.guards.training import AgreeableJudge
from vrft.policy import Policy
from vrft.rewards import SelfPreference
from vrft.tasks import ClassificationTask
from vrft.training.self_judge import SelfJudge
from vrft.types import Answer, Frame, Question, Sample

ASK = "{question} {completion} is the digit"
APPROVAL, DISAPPROVAL = "This", "No"
"""Replies that are tokens of the built-in policy's tokenizer."""

METHODS = {
    "reference": ("reference", 0.04),
    "reference, beta 0.2": ("reference", 0.2),
    "policy": ("policy", 0.04),
    "policy, beta 0.001": ("policy", 0.001),
}
"""Judge, and weight of the KL term, of each method."""

FORMAT_WEIGHT = 0.2

EVALUATIONS = 10
"""Number of evaluations of a run."""

ANSWERS = 16
"""Number of answers to each scan from which the judge selects."""

FRAME = Frame(1000, 1000)


class JudgingTask(ClassificationTask):
    """Classifies digits, or judges the answer in a query."""

    def question(self, sample: Question, frame: Frame) -> str:
        return sample.query or super().question(sample, frame)

    def target_text(self, sample: Question, frame: Frame) -> str:
        return str(sample.target) if sample.query else super().target_text(sample, frame)


class Judgements(Dataset[Sample]):
    """Rendered digits, every second one with an answer to judge."""

    def __init__(self, digits: RenderedDigits) -> None:
        self.digits, self.task, self.reward = digits, ClassificationTask("Classify the digit"), reward("reference")

    def __len__(self) -> int:
        return len(self.digits)

    def __getitem__(self, index: int) -> Sample:
        sample = self.digits[index]
        if index % 2 == 0:
            return sample
        right = index % 4 == 1
        completion = claim(self.task, sample, right, index // 4)
        text = self.reward.text(self.task.question(sample, FRAME), completion)
        return Sample(index, sample.images, index, text, APPROVAL if right else DISAPPROVAL)


class JudgementData(RenderedDigitData):
    """A stream of digits to classify and answers to judge."""

    def train_set(self) -> Judgements:  # type: ignore[override]
        return Judgements(super().train_set())


def reward(judge: Any) -> SelfPreference:
    """Return the reward for a judge."""
    return SelfPreference(judge=judge, question=ASK, approval=APPROVAL, disapproval=DISAPPROVAL)


def reward_argument(judge: str, weight: float) -> str:
    """Return the reward for a judge as a command-line value."""
    settings = (
        f"judge: {judge}, question: '{ASK}', approval: {APPROVAL}, disapproval: '{DISAPPROVAL}', weight: {weight}"
    )
    return f"--model.rewards.self={{class_path: SelfPreference, init_args: {{{settings}}}}}"


def claim(task: ClassificationTask, sample: Sample, right: bool, number: int) -> str:
    """Return a completion that names a sample's digit or, if not `right`, the other digit with index `number`."""
    place = DIGIT_NAMES.index(str(sample.target))
    named = DIGIT_NAMES[place if right else (place + 1 + number % 9) % 10]
    return task.target_text(Sample(0, sample.images, 0, "", named), FRAME)


def teach(folder: Path, steps: int) -> Path:
    """Train the built-in policy to judge as well, and return the exported folder."""
    run = folder / f"judge-{steps}"
    if not (run / "export").exists():
        own = Path(__file__).stem
        words = ["fit", "--config", "tiny/digits", f"--task={own}.JudgingTask", f"--data={own}.JudgementData"]
        words += ["--task.template=Classify the digit", "--data.batch_size=64", f"--trainer.max_steps={steps}"]
        words += ["--model.policy.checkpoint=tiny-digits", "--model.optimizer.lr=2e-3", f"--run_dir={run}"]
        assert vrft([*words, f"--data.steps={steps}", "--trainer.val_check_interval=100"]) == 0
    return run / "export"


def held_out_scans(root: Path) -> list[Sample]:
    """Return the scans on which no run trains."""
    DigitsData(str(root)).prepare_data()
    paths = sorted((root / "val").glob("*/*.png"))
    return [Sample(i, (Image.open(path).convert("RGB"),), i, "", path.parent.name) for i, path in enumerate(paths)]


def judged_pairs(checkpoint: Path, samples: Sequence[Sample]) -> tuple[list[float], list[float]]:
    """Return P(yes) of the right answer to each sample, and of an answer that names another digit."""
    policy, task = Policy(str(checkpoint), dtype="float32"), ClassificationTask("Classify the digit")
    policy.load(keep_reference=False)
    policy.eval()
    limit: Any = SimpleNamespace(max_tokens_per_micro_batch=16384)
    ask = SelfJudge(reward("policy"), policy, task, limit)

    def scores(right: bool) -> list[float]:
        texts = [claim(task, sample, right, number) for number, sample in enumerate(samples)]
        return ask([Answer(text, "", None, True) for text in texts], samples)

    return scores(right=True), scores(right=False)


def run_of(folder: Path, method: str, seed: int) -> Path:
    """Return the folder of a run."""
    return folder / f"{method.replace(', ', '-').replace(' ', '-')}-{seed}"


def tune(folder: Path, checkpoint: Path, method: str, seed: int, steps: int) -> Path:
    """Train on scans by the judge's approval, and return the run's folder."""
    judge, beta = METHODS[method]
    run = run_of(folder, method, seed)
    if not (run / "summary.json").exists():
        words = ["fit", "--config", "digits", f"--model.policy.checkpoint={checkpoint}", f"--model.beta={beta}"]
        words += [
            reward_argument(judge, 1.0),
            "--model.rewards.accuracy.weight=0",
            "--data.shots=null",
            f"--data.root={folder}/digits",
        ]
        words += [f"--seed_everything={seed}", f"--trainer.max_steps={steps}", f"--run_dir={run}"]
        words += [
            f"--trainer.val_check_interval={steps // EVALUATIONS}",
            f"--model.rewards.format.weight={FORMAT_WEIGHT}",
        ]
        assert vrft([*words, "--trainer.enable_progress_bar=false"]) == 0
    return run


def sample_answers(folder: Path, checkpoint: Path, seed: int) -> dict[str, dict[int, float]]:
    """Answer each held-out scan several times, and return the quality of the answers selected from k, by curve."""
    run = folder / f"answers-{seed}"
    if not [*run.glob("evaluation/*/inference_scaling.json")]:
        words = ["test", "--config", "digits", f"--model.policy.checkpoint={checkpoint}", f"--samples={ANSWERS}"]
        words += [reward_argument("reference", 0.0), f"--seed_everything={seed}", f"--run_dir={run}"]
        words += [f"--data.root={folder}/digits", "--trainer.enable_progress_bar=false"]
        assert vrft(words) == 0
    (path,) = run.glob("evaluation/*/inference_scaling.json")
    content = json.loads(path.read_text())["curves"]
    return {name: {int(k): point[0] for k, point in points.items()} for name, points in content.items()}


def own_answers(run: Path) -> tuple[list[float], list[float]]:
    """Return P(yes) of the right and of the wrong greedy answers to held-out scans before training."""
    rows = map(json.loads, (run / "evaluation" / "val-0" / "answers.jsonl").read_text().splitlines())
    scores = [(row["reward"] - FORMAT_WEIGHT * row["valid"], row["score"]) for row in rows]
    return [p for p, right in scores if right], [p for p, right in scores if not right]


def columns(run: Path, *names: str) -> list[tuple[int, list[float]]]:
    """Return (step, values) for the rows of metrics.csv that have all names."""
    with next(run.glob("*/version_*/metrics.csv")).open() as file:
        rows = [*csv.DictReader(file)]
    chosen = [row for row in rows if all(row.get(name) for name in names)]
    return [(int(row["step"]), [float(row[name]) for name in names]) for row in chosen]


def evaluations_of(run: Path, method: str, seed: int) -> list[Evaluation]:
    """Return the evaluations of a run."""
    gaps = columns(run, "train/self_preference_gap")
    found = []
    for step, (approval, accuracy) in columns(run, "val/reward/self", "val/accuracy"):
        near = [gap for other, (gap,) in gaps if step - 10 < other <= step]
        found.append(Evaluation(method, seed, step, approval, accuracy, mean(near) if near else None))
    return found


def first_warnings(run: Path) -> list[int | None]:
    """Return the steps of the first warnings of the guards `agreeable_judge` and `overfitting`, None if none."""
    guard = AgreeableJudge()
    gaps = columns(run, "train/self_preference_gap")
    seen = ((step, guard.watch(Observation({"train/self_preference_gap": torch.tensor(gap)}))) for step, (gap,) in gaps)
    path = run / "warnings.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    others = (line["step"] for line in lines if line["guard"] == "overfitting")
    return [next((step for step, said in seen if said), None), next(others, None)]


def print_runs(found: Sequence[Evaluation], folder: Path) -> None:
    """Print the first, the best and the last evaluation of each run, and when guards warned."""
    print("| judge | seed | approval | accuracy | best accuracy | `agreeable_judge` | `overfitting` |")
    print("|--|--|--|--|--|--|--|")
    for method, seed in sorted({(evaluation.method, evaluation.seed) for evaluation in found}):
        first, *_, last = mine = [
            evaluation for evaluation in found if (evaluation.method, evaluation.seed) == (method, seed)
        ]
        best = max(mine, key=lambda evaluation: evaluation.accuracy)
        steps = [str(step or "-") for step in first_warnings(run_of(folder, method, seed))]
        scores = f"{first.approval:.3f} → {last.approval:.3f} | {first.accuracy:.3f} → {last.accuracy:.3f}"
        print(f"| {method} | {seed} | {scores} | {best.accuracy:.3f} (step {best.step}) | {' | '.join(steps)} |")


def main() -> None:
    """Make missing runs, write the results and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/self_preference"), help="folder of the runs")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"), help="folder of the results")
    parser.add_argument("--seeds", type=int, default=1, help="seeds of the runs")
    parser.add_argument("--judge_steps", type=int, default=600, help="steps in which the policy learns to judge")
    parser.add_argument("--steps", type=int, default=100, help="steps of RFT")
    arguments = parser.parse_args()
    checkpoint = teach(arguments.folder, arguments.judge_steps)
    scans = held_out_scans(arguments.folder / "digits")
    print("| answers | right | wrong | judged correctly | right above wrong | P(yes), right | P(yes), wrong |")
    print("|--|--|--|--|--|--|--|")
    print_pairs("one right and one other to each scan", *judged_pairs(checkpoint, scans))
    rendered = RenderedDigits(300, 1_000_000)
    print_pairs("the same to rendered digits", *judged_pairs(checkpoint, [rendered[i] for i in range(300)]))
    found: list[Evaluation] = []
    for seed in range(arguments.seeds):
        for method in METHODS:
            run = tune(arguments.folder, checkpoint, method, seed, arguments.steps)
            found += evaluations_of(run, method, seed)
    print_pairs("the policy's own to scans", *own_answers(run_of(arguments.folder, "reference", 0)))
    chosen = {seed: sample_answers(arguments.folder, checkpoint, seed) for seed in range(arguments.seeds)}
    path = arguments.output / "self_preference.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([Evaluation._fields, *found])
    draw(found, chosen, path.with_suffix(".png"))
    print_runs(found, arguments.folder)
    print("| one of k answers |", *(f"{k} |" for k in chosen[0]["pass"]))
    print("|--|" + "--|" * len(chosen[0]["pass"]))
    for name in chosen[0]:
        values = (f"{mean(curves[name][k] for curves in chosen.values()):.3f}" for k in chosen[0][name])
        print(f"| {name} |", *(f"{value} |" for value in values))


if __name__ == "__main__":
    main()
