"""Plot the scores of a study."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fewshot.intervals import over_seeds
from fewshot.results import Results, count

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#4477aa", "#cc6677", "#228833", "#aa7700", "#663399", "#555555")


def draw(results: Results, path: Path) -> None:
    """Draw a panel per test with scores over shots, or by method for a single number of shots. The base is a line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    study, tests = results.study, results.tests
    figure = Figure(figsize=(0.8 + 4.2 * len(tests), 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(tests), squeeze=False)[0]
    for panel, test in zip(panels, tests, strict=True):
        panel.axhline(results.base(test, study.metric), color="grey", linestyle="--", label="base")
        if len(results.shots) > 1:
            draw_shots(panel, results, test)
        else:
            draw_methods(panel, results, test)
        panel.set_ylabel(study.metric)
        panel.set_title(test, fontsize=10)
        panel.grid(alpha=0.3)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=9, frameon=False)
    figure.suptitle(study.title, fontsize=11)
    figure.savefig(path, dpi=110)


def draw_shots(panel: Axes, results: Results, test: str) -> None:
    """Draw a line for each method, with the intervals of its means over seeds."""
    for i, method in enumerate(results.methods):
        means = [over_seeds(results.values(test, method, shots, results.study.metric)) for shots in results.shots]
        places = [place + 0.08 * (i - (len(results.methods) - 1) / 2) for place in range(len(results.shots))]
        heights, bars = [mean.mean for mean in means], [mean.bar for mean in means]
        colour = COLOURS[i % len(COLOURS)]
        panel.errorbar(places, heights, bars, label=method, color=colour, marker="o", capsize=3)
    panel.set_xticks(range(len(results.shots)), [count(shots) for shots in results.shots])
    panel.set_xlabel("labelled images per category")


def draw_methods(panel: Axes, results: Results, test: str) -> None:
    """Draw the mean of each method with its interval, and each seed as a point."""
    (shots,) = results.shots
    for place, method in enumerate(results.methods):
        values = results.values(test, method, shots, results.study.metric)
        mean = over_seeds(values)
        panel.errorbar([place], [mean.mean], [mean.bar], color=COLOURS[0], marker="o", capsize=4, zorder=3)
        panel.scatter([place + 0.15] * len(values), values, color=COLOURS[0], alpha=0.4, s=14)
    panel.set_xticks(range(len(results.methods)), results.methods, rotation=20, ha="right", fontsize=9)
