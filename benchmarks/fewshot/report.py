"""Write the rows of a study as CSV and as Markdown tables."""

from __future__ import annotations

import csv
import math
import platform
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

from fewshot.budget import PATIENCE
from fewshot.intervals import Interval, difference, over_seeds
from fewshot.picture import draw
from fewshot.results import Results, count
from fewshot.study import Study
from fewshot.trials import Row

VERSIONS = ("vrft", "torch", "transformers", "lightning")


def write(study: Study, rows: Sequence[Row], folder: Path, command: str, device: str) -> None:
    """Write `few_shot_STUDY.csv`, `.md` and `.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"few_shot_{study.name}"
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with path.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    results = Results(study, rows)
    path.with_suffix(".md").write_text("\n".join(text(results, command, device)) + "\n")
    draw(results, path.with_suffix(".png"))


def text(results: Results, command: str, device: str) -> list[str]:
    study, seeds = results.study, len({row["seed"] for row in results.trained})
    lines = [f"# {study.title}", "", study.about.strip(), ""]
    for test in results.tests:
        lines += table(results, test) if len(results.shots) > 1 or study.paper else by_method(results, test)
    lines += other_metrics(results)
    lines += tuning(results)
    paper = [f"The paper's numbers: {study.source}, one seed, by its own training and evaluation.", ""]
    unit = "CPU-seconds" if device == "cpu" else "seconds"
    lines += [
        "## How",
        "",
        f"Each method has {study.budget:g} {unit} for each number of shots and each seed{unequal(study)}: an equal "
        f"share for each learning rate, the looks at the fold included. A trial ends before that after {PATIENCE} "
        "looks without a better one. The fold is held out of the training file and has no image that is trained on. "
        f"By its {study.metric} the learning rate and the step are chosen (the base is step 0), and what is chosen is "
        f"tested once. A seed chooses shots and fold and seeds the training. {how_sure(seeds)}",
        "",
        *(paper if study.source else []),
        f"- command: `{command}`",
        f"- machine: {machine(device)}",
        f"- versions: {', '.join(f'{name} {version(name)}' for name in VERSIONS)}",
        f"- date: {datetime.now().astimezone().date()}",
        f"- time: {total_time(results.trained):.0f} {unit} of training and tuning, tests not counted",
        "",
        f"![{study.title}](few_shot_{study.name}.png)",
    ]
    return lines


def unequal(study: Study) -> str:
    """Return a text about the methods with their own budgets, or "" if there are none."""
    others = [f"{name}: {method.budget:g}" for name, method in study.methods.items() if method.budget]
    return f" ({', '.join(others)})" if others else ""


def line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def head(columns: Sequence[str]) -> list[str]:
    return [line(columns), "|--" * len(columns) + "|"]


def table(results: Results, test: str) -> list[str]:
    """Return a table of the study's metric, with each method's difference from the first method."""
    study, methods = results.study, results.methods
    first, *others = methods
    shown_here = study.paper.values() if test == results.tests[0] else ()
    printed = list(dict.fromkeys(name for numbers in shown_here for name in numbers))
    columns = ["shots", "base", *methods, *(f"{method} − {first}" for method in others)]
    base = f"{results.base(test, study.metric):.3f}"

    def row(name: str, values: list[list[float]], numbers: dict[str, float]) -> str:
        cells = [name, base, *(shown(over_seeds(found)) for found in values)]
        cells += [signed(difference(values[0], found)) for found in values[1:]]
        return line([*cells, *(f"{numbers[key] / 100:.3f}" if key in numbers else "" for key in printed)])

    lines = [f"## {test}: {study.metric}", "", *head([*columns, *(f"paper: {name}" for name in printed)])]
    for shots in results.shots:
        values = [results.values(test, method, shots, study.metric) for method in methods]
        lines.append(row(count(shots), values, study.paper.get(shots, {})))
    if len(results.shots) > 1:
        lines.append(row("mean", [results.over_shots(test, method, study.metric) for method in methods], {}))
    return [*lines, ""]


def by_method(results: Results, test: str) -> list[str]:
    """Return a table of the study's metric, with a row for each method, for a study with one number of shots."""
    study, methods, (shots,) = results.study, results.methods, results.shots
    values = {method: results.values(test, method, shots, study.metric) for method in methods}
    first = values[methods[0]]
    lines = [
        f"## {test}: {study.metric} at {count(shots)} shots",
        "",
        *head(["method", study.metric, f"− {methods[0]}"]),
    ]
    lines.append(f"| base | {results.base(test, study.metric):.3f} | |")
    for method, found in values.items():
        apart = "" if method == methods[0] else signed(difference(first, found))
        lines.append(line([method, shown(over_seeds(found)), apart]))
    return [*lines, ""]


def other_metrics(results: Results) -> list[str]:
    """Return a table of the other metrics, as means over seeds."""
    lines = ["## Other scores, means over seeds", "", *head(["test", "score", "shots", "base", *results.methods])]
    settings = [key for method in results.study.methods.values() for key in method.settings]
    other = any(key.startswith("model.rewards") for key in settings)  # then rewards of methods are not comparable
    metrics = [metric for metric in results.study.metrics if not (other and metric == "reward")]
    for test in results.tests:
        for metric in metrics:
            for shots in results.shots:
                means = [over_seeds(results.values(test, name, shots, metric)).mean for name in results.methods]
                numbers = [results.base(test, metric), *means]
                lines.append(line([test, metric, count(shots), *(f"{number:.3f}" for number in numbers)]))
    return [*lines, ""]


def tuning(results: Results) -> list[str]:
    """Return a table of the trials chosen by the fold for each seed."""
    lines = ["## What the fold chose", "", "learning rate @ step, for each seed; seconds are used, over the seeds", ""]
    lines += head(["shots", *results.methods, "seconds"])
    for shots in results.shots:
        cells, seconds = [], []
        for method in results.methods:
            test = results.tests[0]
            rates = results.values(test, method, shots, "learning_rate")
            steps = results.values(test, method, shots, "step")
            cells.append(", ".join(f"{rate:g} @ {step:g}" for rate, step in zip(rates, steps, strict=True)))
            seconds.append(f"{over_seeds(results.values(test, method, shots, 'seconds')).mean:.1f}")
        lines.append(line([count(shots), *cells, ", ".join(seconds)]))
    return [*lines, ""]


def how_sure(seeds: int) -> str:
    if seeds == 1:
        return "There is one seed, so there are no intervals: a difference may be chance."
    return (
        f"Intervals are 95 % t-intervals over {seeds} seeds, those of differences over the paired differences of the "
        "seeds (bold: 0 is outside). They don't cover what another test set or another base would change."
    )


def shown(interval: Interval) -> str:
    return f"{interval.mean:.3f}" + ("" if math.isinf(interval.half) else f" ± {interval.half:.3f}")


def signed(interval: Interval) -> str:
    """Format a difference, in bold if its interval excludes 0."""
    if math.isinf(interval.half):
        return f"{interval.mean:+.3f}"
    value = f"{interval.mean:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"
    return f"**{value}**" if interval.low * interval.high > 0 else value


def total_time(rows: Sequence[Row]) -> float:
    """Return the seconds of all trials, counting a trained policy with several tests once."""
    return sum({(row["method"], row["shots"], row["seed"]): row["seconds"] for row in rows}.values())


def machine(device: str) -> str:
    import torch

    if device != "cpu":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return f"one thread of a shared {names[0] if names else platform.machine()}"
