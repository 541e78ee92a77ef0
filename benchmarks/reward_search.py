"""Search for answers that earn more than better answers, for each reward and each sum in configs and tasks.

    python benchmarks/reward_search.py --answers 100000 --out benchmarks/results/reward_search.md

Hill climbs start from the truth, from garbage and from random answers about scenes with 0 to 20 objects. Half of them
search for bad answers that earn much, the others for good answers that earn little. The table has the largest fault of
each kind, relative to the reward of the truth; README.md explains them.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parent))
from rewardsearch.faults import Faults, Judge, faults_of
from rewardsearch.scenes import random_scene

import vrft
from vrft import rewards, tasks
from vrft.rewards import Reward

CONFIGS = Path(vrft.__file__).parent / "configs"
KINDS = (
    "above the truth",
    "F1 in the wrong order",
    "surplus box pays",
    "leaving out pays",
    "lying pays",
    "unreadable pays",
)
PER_SCENE = 400
"""Number of answers in the climbs of one scene."""
BOXES = ("boxes", "labelled boxes")
ALONE = {
    "Consistency": BOXES,
    "DetectionIoU": BOXES,
    "DetectionGIoU": BOXES,
    "DetectionDIoU": BOXES,
    "DetectionF1": BOXES,
    "DetectionConfidence": BOXES,
    "PaperConfidence": BOXES,
    "Format": BOXES,
    "GroundingIoU": ("grounding",),
    "GroundingGIoU": ("grounding",),
    "PaperGroundingGIoU": ("grounding",),
    "PointInBox": ("grounding",),
    "CentreDistance": ("grounding",),
    "Accuracy": ("classes", "counts"),
    "CountError": ("counts",),
    "MazeMoves": ("mazes",),
    "MazeLegal": ("mazes",),
    "MazeTarget": ("mazes",),
}
"""Rewards to search separately, with the kinds of scenes to which they apply."""


def shipped() -> dict[str, list[Reward]]:
    """Return the distinct sums of rewards in configs and in the defaults of tasks, by description."""
    sums = []
    for path in sorted(CONFIGS.rglob("*.yaml")):
        content = yaml.safe_load(path.read_text())
        model = content.get("model", content) if isinstance(content, dict) else {}
        settings = model.get("init_args", {}).get("rewards", {}) if isinstance(model, dict) else {}
        sums.append([build(**setting) for setting in settings.values()])
    own = [getattr(tasks, name) for name in tasks.__all__]
    sums += [[*task().rewards().values()] for task in own if task is not tasks.Task]
    return {" + ".join(map(described, sum_of)): sum_of for sum_of in sums if sum_of}


def build(class_path: str, init_args: dict[str, Any] | None = None) -> Reward:
    module, _, name = class_path.rpartition(".")
    reward: Reward = getattr(import_module(module), name)(**init_args or {})
    return reward


def described(reward: Reward) -> str:
    """Describe a reward by its weight, its name and the settings that differ from the defaults."""
    defaults = {name: setting.default for name, setting in signature(type(reward)).parameters.items()}
    given = {name: value for name, value in vars(reward).items() if name in defaults and name != "weight"}
    changed = [f"{name}={value}" for name, value in given.items() if (value or None) != (defaults[name] or None)]
    name = type(reward).__name__ + (f"({', '.join(changed)})" if changed else "")
    return name if reward.weight == 1 else f"{reward.weight:g} {name}"


def kinds_of(sum_of: list[Reward]) -> tuple[str, ...]:
    """Return the kinds of scenes to which all rewards of a sum apply."""
    kinds = [ALONE[type(reward).__name__] for reward in sum_of if type(reward).__name__ != "Format"] or [BOXES]
    return tuple(kind for kind in kinds[0] if all(kind in other for other in kinds))


def search(sum_of: list[Reward], kinds: tuple[str, ...], answers: int, seed: int) -> Faults:
    """Search until `answers` answers have been scored."""
    faults, number = Faults(), 0
    while faults.answers < answers:
        rng = random.Random(f"{seed} {number}")
        judge = Judge(sum_of, random_scene(rng, kinds[number % len(kinds)]))
        for kind, size in faults_of(rng, judge, min(PER_SCENE, answers)):
            faults.add(kind, size)
        faults.answers += judge.answers
        number += 1
    return faults


def row(name: str, faults: Faults) -> str:
    sizes = [faults.sizes.get(kind, 0.0) for kind in KINDS]
    return f"| {name} | {faults.answers:,} | " + " | ".join("0" if s < 1e-9 else f"{s:.3f}" for s in sizes) + " |"


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=100_000, help="answers to score for each sum")
    parser.add_argument("--alone", type=int, help="answers to score for each reward on its own; default: as many")
    parser.add_argument("--only", nargs="+", help="names of rewards, or parts of the descriptions of sums")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the table to this file as well")
    chosen = parser.parse_args(args)
    begun = time.process_time()
    head = "| " + " | ".join(("rewards", "answers", *KINDS)) + " |\n" + "|--" * (len(KINDS) + 2) + "|"
    lines = [head]
    print(head)
    sums = shipped()
    todo = [(name, sum_of, kinds_of(sum_of), chosen.answers) for name, sum_of in sums.items()]
    alone = chosen.answers if chosen.alone is None else chosen.alone
    todo += [(name, [getattr(rewards, name)()], kinds, alone) for name, kinds in ALONE.items() if name not in sums]
    for name, sum_of, kinds, answers in todo:
        if answers and (chosen.only is None or any(part in name for part in chosen.only)):
            lines.append(row(name, search(sum_of, kinds, answers, chosen.seed)))
            print(lines[-1], flush=True)
    if chosen.out is not None:
        command = " ".join(["python benchmarks/reward_search.py", *(sys.argv[1:] if args is None else args)])
        text = (
            "# Answers that earn more than better ones\n\nThe largest fault found, in units of what the truth earns. "
            "`benchmarks/README.md` explains the columns.\n\n" + "\n".join(lines) + "\n\n"
            f"- command: `{command}`\n- time: {time.process_time() - begun:.0f} CPU-seconds\n"
        )
        chosen.out.write_text(text)


if __name__ == "__main__":
    main()
