"""Make the runs of a study through `python -m vrft`. Finished runs are read, missing runs are made."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewshot.study import Method, Settings, Study, arguments
from vrft.__main__ import main

QUIET: Settings = {
    "trainer.enable_progress_bar": False,
    "checkpoint.every_n_train_steps": 1_000_000,
    "checkpoint.save_last": False,
    "transcripts.every_n_rollouts": 1_000_000,
    "trainer.logger": {
        "class_path": "vrft.loggers.CSVLogger",
        "init_args": {"save_dir": "${....run_dir}", "name": "logs"},
    },
}
Row = dict[str, Any]


@dataclass(frozen=True)
class Runner:
    """Makes the runs of studies in a folder on a device."""

    results: Path
    device: str
    more: tuple[str, ...] = ()
    """Further arguments of every run."""

    def base(self, study: Study) -> list[Row]:
        """Return a row with the scores of the base for each test."""
        method = next(iter(study.methods.values()))
        folder = self.results / f"{method.folder}-base"
        return [
            {"test": name, "method": "base", "shots": 0, "seed": 0, **self.test(study, method, name, folder, None)}
            for name in study.tests
        ]

    def cell(self, study: Study, name: str, shots: int, seed: int) -> list[Row]:
        """Tune a method on a choice of shots, test the best trial and return a row for each test."""
        choice = self.tune(study, name, shots, seed)
        folder = self.folder(study, name, shots, seed)
        rows = []
        for test in study.tests:
            scores = self.test(study, study.methods[name], test, folder, choice["export"])
            kept = {key: choice[key] for key in ("learning_rate", "step", "fold", "seconds")}
            rows.append({"test": test, "method": name, "shots": shots, "seed": seed, **kept, **scores})
        return rows

    def folder(self, study: Study, name: str, shots: int, seed: int) -> Path:
        return self.results / f"{study.methods[name].folder}-{shots}-shots-seed-{seed}"

    def tune(self, study: Study, name: str, shots: int, seed: int) -> Row:
        """Try each learning rate with an equal share of the budget, and select by the fold. The first wins ties."""
        method, folder = study.methods[name], self.folder(study, name, shots, seed)
        share = (method.budget or study.budget) / len(method.learning_rates)
        start: Settings = {}
        if method.after is not None:
            start["model.policy.checkpoint"] = self.tune(study, method.after, shots, seed)["export"]
        budget = {"metric": f"val/{study.metric}", "seconds": share, "clock": "cpu" if self.device == "cpu" else "wall"}
        watch = {"class_path": "fewshot.budget.FoldBudget", "init_args": budget}
        settings = study.settings | method.settings | study.fold | QUIET
        settings["trainer.val_check_interval"] = method.interval
        callbacks = {"trainer.callbacks": [*settings.pop("trainer.callbacks"), watch]}
        fixed = start | callbacks | {"seed_everything": seed} | ({"data.shots": shots} if shots else {})
        trials = []
        for rate in method.learning_rates:
            trial = fixed | {"model.optimizer.lr": rate}
            trials.append(self.trial(self.command("fit", method, settings, trial), folder / f"lr-{rate:g}", rate))
        best = max(trials, key=lambda trial: trial["fold"])
        if not Path(best["export"]).exists():  # removed when it lost to a trial whose result is now missing
            (Path(best["export"]).parent / "trial.json").unlink()
            return self.tune(study, name, shots, seed)
        for trial in trials:
            for made in ("checkpoints", "evaluation") if trial is best else ("checkpoints", "evaluation", "export"):
                shutil.rmtree(Path(trial["export"]).parent / made, ignore_errors=True)
        return best | {"seconds": round(sum(trial["seconds"] for trial in trials), 2)}

    def trial(self, command: list[str], folder: Path, rate: float) -> Row:
        """Train once and return the result. `step` is the step with the best score on the fold; 0 is the base."""
        done = finished(folder / "trial.json", command)
        if done is None:
            for outdated in (folder, *folder.parent.glob("test-*")):
                shutil.rmtree(outdated, ignore_errors=True)
            run([*command, f"--run_dir={folder}"])
            evaluations = json.loads((folder / "fold.json").read_text())
            best = max(evaluations, key=lambda evaluation: evaluation["score"])
            done = {"learning_rate": rate, "step": best["step"], "fold": best["score"]}
            done |= {
                "seconds": evaluations[-1]["seconds"],
                "steps": evaluations[-1]["step"],
                "base": evaluations[0]["score"],
            }
            done |= {"export": str(folder / "export")}
            finish(folder / "trial.json", command, done)
        return done

    def test(self, study: Study, method: Method, name: str, folder: Path, export: str | None) -> dict[str, float]:
        """Return the scores of a trained policy, or of the base, on held-out data."""
        settings = study.settings | method.settings | study.tests[name] | {"trainer.enable_progress_bar": False}
        settings["trainer.logger"] = QUIET["trainer.logger"]
        command = self.command("test", method, settings, {} if export is None else {"model.policy.checkpoint": export})
        place = folder / f"test-{name.replace(' ', '_')}"
        done = finished(place / "scores.json", command)
        if done is None:
            shutil.rmtree(place, ignore_errors=True)
            run([*command, f"--run_dir={place}"])
            done = logged(place / "logs" / "version_0" / "metrics.csv")
            finish(place / "scores.json", command, done)
        return {metric: done[metric] for metric in (study.metric, *study.metrics) if metric in done}

    def command(self, name: str, method: Method, settings: Settings, fixed: Settings) -> list[str]:
        """Return a command of vrft. Arguments of every run override `settings`, and `fixed` overrides both."""
        hardware = f"trainer/{'cpu' if self.device == 'cpu' else 'gpu'}"
        files = ["--config", method.config, "--config", hardware]
        return [name, *files, *arguments(settings), *self.more, *arguments(fixed)]


def run(command: list[str]) -> None:
    """Run vrft's command in this process, and exit if it fails."""
    code = main(command)
    if code:
        raise SystemExit(code)


def finished(path: Path, command: list[str]) -> Row | None:
    """Return the result of an earlier run of the same command, or None."""
    if not path.exists():
        return None
    content: dict[str, Any] = json.loads(path.read_text())
    if sorted(content["command"]) != sorted(command):
        raise SystemExit(f"few_shot: {path} was made with other settings; delete it, or name another --results folder")
    found: Row = content["found"]
    return found


def finish(path: Path, command: list[str], found: Row) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"command": command, "found": found}, indent=1) + "\n")
    partial.replace(path)


def logged(path: Path) -> dict[str, float]:
    """Return the last value of each `test/…` in a log, by name without the prefix."""
    found = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            found |= {key.removeprefix("test/"): float(value) for key, value in row.items() if is_score(key, value)}
    return found


def is_score(key: str, value: str) -> bool:
    return key.startswith("test/") and value != ""


def rows_of(runner: Runner, study: Study, shots: Sequence[int], seeds: int) -> Iterator[Row]:
    """Yield all rows of a study, seed by seed, so that an interrupted study has complete tables with fewer seeds."""
    yield from runner.base(study)
    for seed in range(seeds):
        for count in shots:
            for name in study.methods:
                yield from runner.cell(study, name, count, seed)
