"""Tables and the figure of the self-preference study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import NamedTuple

COLOURS = ("#4477aa", "#cc6677", "#228833", "#aa7700", "#663399")


class Evaluation(NamedTuple):
    """A run's evaluation on the held-out scans."""

    method: str
    seed: int
    step: int
    approval: float  # mean P(yes) of the greedy answers, by the judge of training
    accuracy: float
    gap: float | None  # train/self_preference_gap near this step


def draw(found: Sequence[Evaluation], chosen: Mapping[int, Mapping[str, Mapping[int, float]]], path: Path) -> None:
    """Draw approval and accuracy over steps for each judge, and the quality of the answers chosen from k."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    methods = [*dict.fromkeys(evaluation.method for evaluation in found)]
    figure = Figure(figsize=(3.0 * (len(methods) + 1), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    *panels, last = figure.subplots(1, len(methods) + 1, sharey=True)
    for panel, method in zip(panels, methods, strict=True):
        for name, colour in (("approval", COLOURS[1]), ("accuracy", COLOURS[0])):
            for seed in sorted({evaluation.seed for evaluation in found}):
                mine = [evaluation for evaluation in found if (evaluation.method, evaluation.seed) == (method, seed)]
                label = name if seed == 0 else None
                panel.plot([x.step for x in mine], [getattr(x, name) for x in mine], color=colour, label=label)
        panel.set_title(f"judge: {method}", fontsize=10)
        panel.set_xlabel("steps of RFT")
    panels[0].set_ylabel("600 held-out scans")
    for colour, name in zip(COLOURS, next(iter(chosen.values())), strict=False):
        if name != "best":  # equal to pass@k
            sizes = [*chosen[0][name]]
            heights = [mean(curves[name][k] for curves in chosen.values()) for k in sizes]
            last.plot(sizes, heights, color=colour, marker="o", markersize=3, label=name)
    last.set_title("one of k answers", fontsize=10)
    last.set_xscale("log", base=2)
    last.set_xlabel("k")
    for panel in (panels[0], last):
        panel.legend(fontsize=8)
    for panel in (*panels, last):
        panel.set_ylim(0, 1.02)
        panel.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def print_pairs(name: str, right: Sequence[float], wrong: Sequence[float]) -> None:
    """Print a table row that shows how well the judge distinguishes right from wrong answers."""
    correct = (mean(p > 0.5 for p in right) + mean(p <= 0.5 for p in wrong)) / 2
    above = mean((a > b) + (a == b) / 2 for a in right for b in wrong)
    shares = (f"{value:.3f}" for value in (correct, above, mean(right), mean(wrong)))
    print(f"| {name} | {len(right)} | {len(wrong)} | {' | '.join(shares)} |")
