"""Broken inputs for everything that reads what others wrote: `python tests/fuzz/run.py --inputs 1000000 --seed 0`.

Input k of a seed is always the same. One that is no good is kept in `--keep` and can be looked at with `--only K`.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import random
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from targets import Target

ROOT = Path(__file__).parents[2]
CHUNK = 500


@dataclass
class Found:
    """What came of some inputs."""

    read: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    slowest: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def add(self, other: Found) -> None:
        """Count those of another as well."""
        self.read += other.read
        self.refused += other.refused
        self.problems += other.problems
        for name, seconds in other.slowest.items():
            self.slowest[name] = max(seconds, self.slowest.get(name, 0.0))


def give(targets: Sequence[Target], numbers: Iterable[int], seed: int, seconds: float, keep: Path | None) -> Found:
    """Break an example for each number, and let its target read it."""
    from vrft.errors import ConfigurationError

    found = Found()
    weights = [target.weight for target in targets]
    signal.signal(signal.SIGVTALRM, _too_long)
    for number in numbers:
        rng = random.Random(f"{seed}/{number}")
        (target,) = rng.choices(targets, weights)
        content = target.breaks(rng, rng.choice(target.examples))
        start = time.process_time()
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
        try:
            target.read(content)
            found.read[target.name] += 1
        except ConfigurationError:
            found.refused[target.name] += 1
        except Exception:  # which is what all this looks for
            found.problems.append(f"{target.name}, input {number}: {traceback.format_exc()}")
            if keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
                (keep / f"{number}").write_bytes(content)
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        taken = time.process_time() - start
        found.slowest[target.name] = max(taken, found.slowest.get(target.name, 0.0))
    return found


def _too_long(*_: Any) -> None:
    raise TimeoutError("computes for too long")


def quiet() -> None:
    """Readers warn of what they leave out."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)


_targets: list[Target] = []


def _start(seed: int, keep: Path | None) -> None:
    sys.path.insert(0, str(ROOT))  # the writers of data sets are there
    import torch
    from targets import all_targets

    torch.set_num_threads(1)
    quiet()
    _targets.extend(all_targets(Path(tempfile.mkdtemp(prefix="fuzz-"))))
    _settings.update(seed=seed, keep=keep)


_settings: dict[str, Any] = {}


def _chunk(numbers: range) -> Found:
    from targets import SECONDS

    return give(_targets, numbers, _settings["seed"], SECONDS, _settings["keep"])


def table(found: Found) -> Iterator[str]:
    """Inputs of each target."""
    yield f"| {'target':<36} | read | refused | slowest |"
    yield "|--|--:|--:|--:|"
    for name, seconds in found.slowest.items():
        yield f"| {name:<36} | {found.read[name]:,} | {found.refused[name]:,} | {seconds * 1000:.0f} ms |"


def main() -> int:
    """The command; its exit code is 1 if something was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--keep", type=Path, default=Path("runs/fuzz"), help="folder for inputs that are no good")
    parser.add_argument("--only", type=int, help="this input alone")
    arguments = parser.parse_args()
    numbers = range(arguments.inputs) if arguments.only is None else range(arguments.only, arguments.only + 1)
    chunks = [numbers[start : start + CHUNK] for start in range(0, len(numbers), CHUNK)]
    total = Found()
    start = time.perf_counter()
    settings = (arguments.seed, arguments.keep)
    with multiprocessing.get_context("spawn").Pool(arguments.processes, _start, settings) as pool:
        for i, found in enumerate(pool.imap_unordered(_chunk, chunks), 1):
            total.add(found)
            for problem in found.problems:
                print(problem, flush=True)
            if sys.stderr.isatty() or i % 100 == 0:
                seconds = time.perf_counter() - start
                print(f"{min(i * CHUNK, len(numbers)):,} inputs, {seconds:.0f} s", file=sys.stderr, flush=True)
    print(*table(total), sep="\n")
    done = total.read.total() + total.refused.total()
    print(f"{len(numbers):,} inputs, seed {arguments.seed}: {done:,} as they should be, {len(total.problems):,} not")
    return 1 if total.problems else 0


if __name__ == "__main__":
    sys.exit(main())
