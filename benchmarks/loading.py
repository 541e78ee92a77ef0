"""Measure the host memory for loading a policy in one process or several.

    python benchmarks/loading.py --preset 1b
    python benchmarks/loading.py --preset 1b --processes 2

Builds a random bfloat16 checkpoint in a temporary folder and loads it in new processes through Lightning's strategies,
as in `fit`. Memory is anonymous memory (RssAnon in /proc/PID/status), i.e. without pages of files, which the system can
drop. It is sampled every 2 ms, for each process while it loads and for all processes together. Prints a JSON line for
each way of training.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

INTERVAL = 0.002
"""Seconds between two samples."""
WAYS: dict[str, dict[str, Any]] = {
    "lora": {"lora": True, "keep_reference": True},
    "full": {"lora": False, "keep_reference": False},
    "full with a reference": {"lora": False, "keep_reference": True},
}
"""Ways of training. `beta` is 0 in the second, and above 0 in the third."""


def anonymous(process: int) -> int:
    """Return the anonymous memory of a process in bytes, 0 if it has ended."""
    try:
        text = Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("RssAnon")), 0)


@contextmanager
def peak(measure: Callable[[], int]) -> Iterator[list[int]]:
    """Yield a list whose only entry is the maximum of `measure()` so far."""
    largest, done = [measure()], threading.Event()

    def sample() -> None:
        while not done.wait(INTERVAL):
            largest[0] = max(largest[0], measure())

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield largest
    finally:
        done.set()
        thread.join()
        largest[0] = max(largest[0], measure())


# ---------------------------------------------------------------------------------------------------- the loading side


def load(arguments: argparse.Namespace) -> None:
    """Load on this rank and write the measurements to a file. Lightning starts other ranks with the same command."""
    import torch
    from lightning.pytorch import LightningModule, Trainer
    from torch.utils.data import DataLoader

    from vrft.policy import LoRA, Policy
    from vrft.training.strategies import parallelism_of

    torch.set_num_threads(1)

    class Loads(LightningModule):
        """Loads a policy like `RFT`, and does nothing else."""

        def configure_model(self) -> None:
            way = WAYS[arguments.way]
            self.policy = Policy(str(arguments.checkpoint), LoRA() if way["lora"] else None, dtype="bfloat16")
            self.before, began = anonymous(os.getpid()), time.perf_counter()
            with peak(lambda: anonymous(os.getpid())) as largest:
                parallelism_of(self.trainer).load(self.policy, way["keep_reference"])
            self.seconds, self.largest = time.perf_counter() - began, largest[0]

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            parameters = sum(parameter.numel() for parameter in self.policy.model.parameters())
            found = {"before": self.before, "peak": self.largest, "after": anonymous(os.getpid())}
            found |= {"seconds": round(self.seconds, 1), "parameters": parameters}
            (arguments.found / f"{self.global_rank}.json").write_text(json.dumps(found))

    strategy = arguments.strategy if arguments.processes > 1 else "auto"
    trainer = Trainer(accelerator="cpu", devices=arguments.processes, strategy=strategy, barebones=True)
    trainer.validate(Loads(), DataLoader([0] * arguments.processes), verbose=False)


# -------------------------------------------------------------------------------------------------- the measuring side


def measure(checkpoint: Path, way: str, processes: int, strategy: str) -> dict[str, Any]:
    """Load in new processes, and return the measurements of each and the peak of all processes together."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--load", str(checkpoint), "--way", way, "--found", folder]
        command += ["--processes", str(processes), "--strategy", strategy]
        with Path(folder, "log.txt").open("w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
            with peak(lambda: sum(anonymous(pid) for pid in family(process))) as together:
                code = process.wait()
        if code != 0:
            raise SystemExit(Path(folder, "log.txt").read_text())
        ranks = [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(processes)]
    parameters = ranks[0]["parameters"]
    return {
        "way": way,
        "processes": processes,
        "strategy": strategy if processes > 1 else None,
        "parameters": parameters,
        "bytes_per_parameter": [round((rank["peak"] - rank["before"]) / parameters, 2) for rank in ranks],
        "kept_per_parameter": [round((rank["after"] - rank["before"]) / parameters, 2) for rank in ranks],
        "node_peak_GB": round(together[0] / 1e9, 2),
        "libraries_GB": [round(rank["before"] / 1e9, 2) for rank in ranks],
        "seconds": ranks[0]["seconds"],
    }


def family(process: subprocess.Popen[Any]) -> list[int]:
    """Return the ids of a process and its descendants."""
    try:
        return [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


def build(folder: Path, preset: str) -> None:
    """Build the checkpoint in a separate process, whose memory is not measured."""
    script = Path(__file__).with_name("build_checkpoint.py")
    options = ["--arch", "qwen2_vl", "--preset", preset, "--dtype", "bfloat16"]
    subprocess.run([sys.executable, str(script), str(folder), *options], check=True, capture_output=True)


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="1b", help="size of the checkpoint, see build_checkpoint.py")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--strategy", default="fsdp2", choices=["fsdp2", "ddp"], help="of several processes")
    parser.add_argument("--way", choices=list(WAYS), help="measure only one way of training")
    parser.add_argument("--load", dest="checkpoint", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--found", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(args)
    if arguments.checkpoint is not None:
        load(arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder), arguments.preset)
        for way in [arguments.way] if arguments.way else WAYS:
            found = measure(Path(folder), way, arguments.processes, arguments.strategy)
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
