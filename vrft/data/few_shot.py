"""Choose a few samples per category, reproducibly."""

from __future__ import annotations

import itertools
import json
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TypeVar

from lightning.pytorch.utilities import rank_zero_only

from vrft.errors import ConfigurationError
from vrft.run_dir import RunDir

T = TypeVar("T")


def choose_shots(
    items: Sequence[T],
    category: Callable[[T], str],
    shots: int,
    seed: int | str,
    usable: Callable[[T], bool],
    field: str = "data.shots",
) -> list[T]:
    """Choose `shots` usable items of each category, in their original order.

    The choice for a category depends on (seed, category) alone, and the choice of k shots is a subset of that of k + 1.

    Raises:
        ConfigurationError: a category has fewer than `shots` items, or `shots` is below 1.
    """
    if shots < 1:
        raise ConfigurationError(f"{field}: expected at least 1, got {shots}")
    positions = defaultdict(list)
    for position, item in enumerate(items):
        positions[category(item)].append(position)
    chosen: list[int] = []
    for name, candidates in positions.items():
        random.Random(f"{seed}/{name}").shuffle(candidates)
        found = list(itertools.islice((p for p in candidates if usable(items[p])), shots))
        if len(found) < shots:
            raise ConfigurationError(f"{field}: expected at least {shots} images of {name!r}, got {len(found)}")
        chosen += found
    return [items[position] for position in sorted(chosen)]


@rank_zero_only
def record_shots(run: RunDir, chosen: Sequence[tuple[str, int | str]]) -> None:
    """Write the chosen images of each category to `few_shot.json` in the run's folder."""
    table = defaultdict(list)
    for name, image in chosen:
        table[name].append(image)
    run.path.mkdir(parents=True, exist_ok=True)
    run.few_shot.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
