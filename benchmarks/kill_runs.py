"""Kill runs at random instants, resume them, and compare them bit for bit with a run that was not killed.

    python benchmarks/kill_runs.py --kills 30

Starts a small fit like the quickstart, kills its whole process group by SIGKILL at an instant drawn uniformly from the
duration of such a run, and resumes it with `--ckpt_path last`, or starts it again if there is no checkpoint yet. One in
three resumed runs is killed as well. In the end, weights, optimizer states, schedules, the loader's position and every
logged number except seconds and memory must equal those of the uninterrupted run. Checkpoints are saved every other
step, so that kills are likely to interrupt one. Prints a line for each kill; `--write` writes a table to
`benchmarks/results/`.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
MEASURED = ("time/", "memory/", "train/samples_per_second")
"""Prefixes of the numbers that differ between any two runs."""
COLUMNS = ("instant", "continued", "hit", "step", "identical")


def arguments(folder: Path, data: Path, processes: int = 1, steps: int = 48) -> list[str]:
    """Return the arguments of a small run in `folder`, with data in a folder that runs share."""
    several = ["--trainer.strategy=ddp", f"--trainer.devices={processes}"] if processes > 1 else []
    places = [f"--data.{part}_annotations={data}/{part}.json" for part in ("train", "val")]
    places += [f"--data.{part}_images={data}/{part}" for part in ("train", "val")]
    logger = f"{{class_path: vrft.loggers.CSVLogger, init_args: {{save_dir: '{folder}', name: logs}}}}"
    return [
        *("fit", "--config", "quickstart", *places, *several, f"--run_dir={folder}"),
        *("--data.train_size=12", "--data.val_size=6", "--model.num_generations=4", "--trainer.accelerator=cpu"),
        *(f"--trainer.max_steps={steps}", "--trainer.val_check_interval=1000", "--checkpoint.every_n_train_steps=2"),
        *("--trainer.enable_progress_bar=false", f"--trainer.logger={logger}", "--transcripts.every_n_rollouts=1"),
    ]


def start(command: list[str]) -> subprocess.Popen[bytes]:
    """Start a run as the leader of its own process group."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "vrft", *command],
        cwd=ROOT,
        env=environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def kill_when(process: subprocess.Popen[bytes], now: Callable[[], bool]) -> bool:
    """Kill a run and its children once `now` returns True. Return False if the run ended before."""
    while not now():
        if process.poll() is not None:
            return False
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return True


def continuation(folder: Path, command: list[str]) -> list[str]:
    """Return the command that resumes a killed run. Without a checkpoint, empty the folder and start over."""
    last = folder / "checkpoints" / "last.ckpt"
    if last.exists():
        return [*command, "--ckpt_path=last"]
    assert not last.is_symlink(), f"{last} is a broken link"
    shutil.rmtree(folder, ignore_errors=True)
    return command


def scene(folder: Path) -> str:
    """Guess from the folder of a killed run what the run was doing."""
    if partial := sorted((folder / "checkpoints").glob("*.partial")):
        return f"writing {partial[0].name}"
    if (folder / "export").exists():
        return "export, last evaluation"
    if (folder / "checkpoints" / "last.ckpt").exists():
        return "training"
    return "before the first checkpoint" if (folder / "config.yaml").exists() else "start, evaluation of the base"


def rows(folder: Path) -> dict[tuple[int, str], str]:
    """Return all numbers that a run logged, by step and name. If a number was logged again, return the last one."""
    found = {}
    logs = sorted((folder / "logs").glob("*/metrics.csv"), key=lambda path: int(path.parent.name.split("_")[1]))
    for path in logs:
        with path.open() as file:
            for row in csv.DictReader(file):
                found |= {(int(row["step"]), name): value for name, value in row.items() if value != ""}
    return {key: value for key, value in found.items() if not key[1].startswith(MEASURED)}


def differences(left_alone: Path, killed: Path) -> list[str]:
    """Return the parts of the last checkpoint, and the logged steps, in which two runs differ."""
    a, b = (torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (left_alone, killed))
    parts = ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch")
    found = [part for part in parts if not same(a[part], b[part])]
    if not same(*(content["loops"]["fit_loop"]["state_dict"] for content in (a, b))):
        found.append("the loader's position")
    expected, got = rows(left_alone), rows(killed)
    wrong = sorted(
        {step for step, name in expected.keys() | got.keys() if expected.get((step, name)) != got.get((step, name))}
    )
    return found + [f"the log of step {step}" for step in wrong]


def same(a: Any, b: Any) -> bool:
    """Return whether two values, or nested dicts and lists of values, are bitwise equal."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--processes", type=int, choices=(1, 2), default=1)
    parser.add_argument("--steps", type=int, default=48, help="of each run, an even number")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args(args)
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as place:
        whole, data = Path(place) / "whole", Path(place) / "data"
        began = time.monotonic()
        assert start(arguments(whole, data, options.processes, options.steps)).wait() == 0
        duration = time.monotonic() - began
        print(f"a run takes {duration:.1f} s", flush=True)
        table: list[dict[str, str]] = []
        while len(table) < options.kills:
            folder = Path(place) / f"killed-{len(table)}"
            command = arguments(folder, data, options.processes, options.steps)
            table += killed_run(folder, command, whole, duration, draw)
    identical = sum(line["identical"] == "yes" for line in table)
    print(f"{identical} of {len(table)} identical")
    if options.write:
        write(table, duration, options.processes)


def killed_run(
    folder: Path, command: list[str], whole: Path, duration: float, draw: random.Random
) -> list[dict[str, str]]:
    """Kill a run, twice in one of three cases, then complete it. Return a line for each kill."""
    lines = []
    for _ in range(2 if draw.random() < 1 / 3 else 1):
        instant = draw.uniform(0, duration)
        again = continuation(folder, command)
        due = time.monotonic() + instant
        hit = kill_when(start(again), lambda due=due: time.monotonic() >= due)
        step = max((step for step, name in rows(folder) if name.startswith("train/")), default=-1) + 1
        how = {"instant": f"{instant:.2f} s", "continued": "no" if again is command else "yes"}
        lines.append({**how, "hit": scene(folder) if hit else "nothing: the run had ended", "step": str(step)})
    assert start(continuation(folder, command)).wait() == 0, f"{folder}: resuming fails"
    wrong = differences(whole, folder)
    shutil.rmtree(folder)
    for line in lines:
        line["identical"] = "no: " + ", ".join(wrong) if wrong else "yes"
        print("  ".join(f"{name}: {line[name]}" for name in COLUMNS), flush=True)
    return lines


def write(table: list[dict[str, str]], duration: float, processes: int) -> None:
    path = ROOT / "benchmarks" / "results" / ("kill_runs.md" if processes == 1 else f"kill_runs_{processes}.md")
    identical = sum(line["identical"] == "yes" for line in table)
    command = f"python benchmarks/kill_runs.py --kills {len(table)} --processes {processes} --write"
    lines = [
        f"# {len(table)} kills, {processes} process{'es' if processes > 1 else ''}",
        "",
        f"`{command}`, torch {torch.__version__}, {platform.machine()} CPU. A run that is left alone takes",
        f"{duration:.1f} s. Identical in the end: {identical} of {len(table)}.",
        "",
        "| kill at | of a continuation | what it hit | steps logged | identical in the end |",
        "|--|--|--|--|--|",
        *("| " + " | ".join(line[name] for name in COLUMNS) + " |" for line in table),
    ]
    path.write_text("\n".join(lines) + "\n")
    print(path)


if __name__ == "__main__":
    main()
