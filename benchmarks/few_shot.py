"""Compare RFT and SFT with few labels, by shots, methods and seeds, each tuned on a fold with the same budget.

    python benchmarks/few_shot.py --study detection --seeds 3 --shots 1 4 16
    python benchmarks/few_shot.py --config coco_few_shot --device cuda -- --data.train_annotations=...

Finished runs stay in `runs/few_shot` (or --results), and a rerun makes only missing runs. Arguments after `--` are
passed to every run of vrft.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
for name, value in (("OMP_NUM_THREADS", "1"), ("TOKENIZERS_PARALLELISM", "false")):
    os.environ.setdefault(name, value)


def main(args: list[str] | None = None) -> None:
    from fewshot import study as studies

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--study", help=f"one of {', '.join(studies.names())}")
    which.add_argument("--config", type=Path, help="an RFT config of the paper's experiments, in place of its study")
    parser.add_argument("--shots", type=int, nargs="+", help="labelled images per category; 0: all that there are")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--budget", type=float, help="seconds of a method per shots and seed, CPU-seconds on a CPU")
    parser.add_argument("--results", type=Path, default=Path("runs/few_shot"), help="folder of finished runs")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder of tables and pictures")
    said = sys.argv[1:] if args is None else args
    end = said.index("--") if "--" in said else len(said)
    chosen, more = parser.parse_args(said[:end]), said[end + 1 :]
    study = studies.load(chosen.study or studies.of_config(chosen.config), chosen.budget)

    from fewshot.report import write
    from fewshot.trials import Runner, rows_of

    runner = Runner(chosen.results, chosen.device, tuple(more))
    rows = list(rows_of(runner, study, chosen.shots or study.shots, chosen.seeds))
    command = " ".join(["python benchmarks/few_shot.py", *said])
    write(study, rows, chosen.out, command, chosen.device)
    print((chosen.out / f"few_shot_{study.name}.md").read_text())


if __name__ == "__main__":
    main()
