"""Train with the policy's own rollouts and with rollouts of vLLM servers, and compare mAP, time and mismatch.

    python benchmarks/widen.py tiny-detection FOLDER
    python benchmarks/vllm_servers.py --checkpoint FOLDER --urls http://127.0.0.1:8000

The servers must be able to run the checkpoint in FOLDER. On a CPU, this requires attention heads of dimension 32 and an
untied LM head. Start the servers first, with the commands of `python -m vrft serve-command`. Arguments after `--` are
passed to every run of vrft.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from vrft.__main__ import main as vrft

ROOT = Path(__file__).parents[1]
COLUMNS = ("engine", "seed", "mAP before", "mAP after", "reward after", "rollout s", "mean gap", "largest gap")


def run(arguments: argparse.Namespace, engine: str, seed: int, folder: Path) -> dict[str, float]:
    """Train once, and return the scores, the time of the rollouts and the mismatch."""
    words = ["fit", "--config", "quickstart"]
    if engine == "vLLM":
        words += ["--config", "engine/vllm"]
        words += [f"--model.engine.init_args.urls=[{','.join(arguments.urls)}]"]
    scenes = arguments.scenes
    words += [f"--data.train_annotations={scenes}/train.json", f"--data.train_images={scenes}/train"]
    words += [f"--data.val_annotations={scenes}/val.json", f"--data.val_images={scenes}/val"]
    words += [f"--model.policy.checkpoint={arguments.checkpoint}", f"--seed_everything={seed}", "--data.seed=0"]
    words += [f"--trainer.max_steps={arguments.steps}", "--trainer.val_check_interval=1000", f"--run_dir={folder}"]
    words += [f"--data.val_size={arguments.val_size}", "--trainer.enable_progress_bar=false", *arguments.more]
    if code := vrft(words):
        sys.exit(code)
    summary = json.loads((folder / "summary.json").read_text())
    with (folder / "logs" / "version_0" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/reward"]]
    gaps = [float(row.get("train/sampling_gap_max") or "nan") for row in rows]
    return {
        "mAP before": summary["base"]["mAP"],
        "mAP after": summary["tuned"]["mAP"],
        "reward after": summary["tuned"]["reward"],
        "rollout s": statistics.median(float(row["time/rollout"]) for row in rows),
        "mean gap": statistics.mean(float(row["train/sampling_gap"]) for row in rows),
        "largest gap": max(gaps),
    }


def table(results: list[tuple[str, int, dict[str, float]]]) -> str:
    """Return the results as a Markdown table."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "--|" * len(COLUMNS)]
    for engine, seed, found in results:
        shown = {name: f"{value:.1e}" if "gap" in name else f"{value:.3f}" for name, value in found.items()}
        values = [shown[name].replace("nan", "") for name in COLUMNS[2:]]
        lines.append("| " + " | ".join([engine, str(seed), *values]) + " |")
    return "\n".join(lines) + "\n"


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--urls", nargs="+", required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--val_size", type=int, default=64)
    parser.add_argument("--out", type=Path)
    said = list(sys.argv[1:] if args is None else args)
    end = said.index("--") if "--" in said else len(said)
    arguments = parser.parse_args(said[:end])
    arguments.more = said[end + 1 :]
    results: list[tuple[str, int, dict[str, float]]] = []
    with tempfile.TemporaryDirectory() as folder:
        arguments.scenes = folder
        for seed in arguments.seeds:
            for engine in ("own", "vLLM"):
                results.append((engine, seed, run(arguments, engine, seed, Path(folder) / f"{engine}-{seed}")))
                print(table(results), flush=True)
    if arguments.out:
        arguments.out.write_text(table(results))


if __name__ == "__main__":
    main()
