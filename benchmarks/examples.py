"""Measure few-shot examples in prompts of the built-in digits policy: accuracy after RFT and SFT, and cost of a step.

    OMP_NUM_THREADS=1 python benchmarks/examples.py --write

For each seed, SFT with four examples in each prompt first teaches the policy to use examples, which tiny-digits has
never seen. Then RFT and SFT train with each number of examples, and each policy answers the 600 held-out scans with the
number of examples of its training. The cost of an RFT step is the difference in CPU time between runs of 25 and 5
steps, divided by 20; runs with different numbers of examples alternate. All runs are made in this process. Runs in
`--results` are not repeated.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

from vrft.__main__ import main as vrft

RESULT = Path(__file__).parent / "results" / "examples_cpu.md"
COUNTS = (0, 1, 4)
WARM_UP = 4
"""Number of examples in the prompts of the warm-up."""
SHORT, LONG = 5, 25
"""Steps of the two runs from whose difference the cost of a step is computed."""
QUIET = (
    "--trainer.logger={class_path: vrft.loggers.CSVLogger, init_args: {save_dir: '${....run_dir}', name: logs}}",
    "--trainer.enable_progress_bar=false",
    "--checkpoint.every_n_train_steps=1000000",
    "--checkpoint.save_last=false",
)


class Runs:
    """Runs of vrft in a folder. Each is made once."""

    def __init__(self, folder: Path, more: Sequence[str]) -> None:
        self.folder, self.more = folder, more

    def run(self, name: str, command: str, config: str, *words: str) -> Path:
        """Make a run, unless its folder is complete, and return the folder."""
        folder = self.folder / name
        if not (folder / "done").exists():
            shutil.rmtree(folder, ignore_errors=True)
            before = cpu_seconds()
            if code := vrft([command, "--config", config, f"--run_dir={folder}", *QUIET, *self.more, *words]):
                raise SystemExit(code)
            (folder / "done").write_text(f"{cpu_seconds() - before:.3f}\n")
        return folder

    def train(self, name: str, config: str, steps: int, *words: str) -> Path:
        """Train without evaluations, and return the run's folder."""
        limits = (f"--trainer.max_steps={steps}", "--trainer.limit_val_batches=0")
        return self.run(name, "fit", config, *limits, *words)

    def accuracy(self, trained: Path, examples: int) -> float:
        """Return the accuracy of a trained policy on the held-out scans, with greedy answers."""
        words = (f"--model.policy.checkpoint={trained}/export", f"--data.examples={examples}")
        folder = self.run(f"{trained.name}-with-{examples}", "validate", "digits", *words)
        with (folder / "logs" / "version_0" / "metrics.csv").open(newline="") as file:
            return [float(row["val/accuracy"]) for row in csv.DictReader(file) if row["val/accuracy"]][-1]


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and its children so far."""
    process = psutil.Process()
    times = [process.cpu_times(), *(child.cpu_times() for child in process.children(recursive=True))]
    return sum(part.user + part.system + part.children_user + part.children_system for part in times)


def warm_up(runs: Runs, seed: int, steps: int) -> Path:
    words = (f"--seed_everything={seed}", f"--data.examples={WARM_UP}")
    return runs.train(f"warm-{seed}", "digits_sft", steps, *words)


def accuracies(runs: Runs, seeds: int, steps: int) -> list[str]:
    """Return the lines of the table of accuracies."""
    found: dict[tuple[str, int], list[float]] = {}
    for seed in range(seeds):
        warm = warm_up(runs, seed, 2 * steps)
        start = (f"--seed_everything={seed}", f"--model.policy.checkpoint={warm}/export")
        for count in COUNTS:
            found.setdefault(("warm-up", count), []).append(runs.accuracy(warm, count))
            for name, config in (("RFT", "digits"), ("SFT", "digits_sft")):
                words = (*start, f"--data.examples={count}")
                trained = runs.train(f"{name}-{seed}-{count}", config, steps, *words)
                found.setdefault((name, count), []).append(runs.accuracy(trained, count))
    lines = ["| policy | examples | accuracy of each seed | mean |", "|--|--|--|--:|"]
    for (name, count), values in sorted(found.items(), key=lambda item: (-len(item[0][0]), item[0])):
        each = ", ".join(f"{value:.3f}" for value in values)
        lines.append(f"| {name} | {count} | {each} | {statistics.mean(values):.3f} |")
    return lines


def costs(runs: Runs, repeats: int, steps: int) -> list[str]:
    """Return the lines of the table of CPU-seconds."""
    start = f"--model.policy.checkpoint={warm_up(runs, 0, 2 * steps)}/export"
    seconds: dict[int, list[float]] = {count: [] for count in COUNTS}
    for repeat in range(repeats):
        for count in COUNTS:
            words = (start, f"--data.examples={count}")
            spent = [
                float((runs.train(f"cost-{repeat}-{count}-{length}", "digits", length, *words) / "done").read_text())
                for length in (SHORT, LONG)
            ]
            seconds[count].append((spent[1] - spent[0]) / (LONG - SHORT))
    lines = [
        "| examples | CPU-seconds of a step | median | over none in the same turn | median |",
        "|--|--|--:|--|--:|",
    ]
    for count, values in seconds.items():
        ratios = [value / none for value, none in zip(values, seconds[0], strict=True)]
        columns = [", ".join(f"{value:.3f}" for value in values), f"{statistics.median(values):.3f}"]
        columns += [", ".join(f"{ratio:.2f}" for ratio in ratios), f"{statistics.median(ratios):.2f}"]
        lines.append(f"| {count} | {' | '.join(columns)} |")
    return lines


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3, help="turns of the runs that measure the cost")
    parser.add_argument("--steps", type=int, default=50, help="of RFT and of SFT; the warm-up has twice as many")
    parser.add_argument("--results", type=Path, default=Path("runs/examples"), help="folder of finished runs")
    parser.add_argument("--write", action="store_true", help=f"replace the tables of {RESULT.name}")
    said = [*(sys.argv[1:] if args is None else args)]
    end = said.index("--") if "--" in said else len(said)
    chosen, more = parser.parse_args(said[:end]), said[end + 1 :]
    runs = Runs(chosen.results.absolute(), more)
    tables = {
        "cost": costs(runs, chosen.repeats, chosen.steps),
        "accuracy": accuracies(runs, chosen.seeds, chosen.steps),
    }
    for lines in tables.values():
        print("\n".join([*lines, ""]))
    if chosen.write:
        RESULT.write_text(replaced(RESULT.read_text(encoding="utf-8"), tables), encoding="utf-8")


def replaced(text: str, tables: dict[str, list[str]]) -> str:
    """Replace the tables between `<!-- NAME -->` and `<!-- end -->` in a text."""
    for name, lines in tables.items():
        before, mark, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        text = "".join([before, mark, "\n".join(["", *lines, "", ""]), end, after])
    return text


if __name__ == "__main__":
    main()
