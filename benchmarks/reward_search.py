"""Search for answers that earn more than better ones, for each reward and each sum of rewards that a config ships.

    python benchmarks/reward_search.py --answers 100000 --out benchmarks/results/reward_search.md

Climbs start from the truth, from garbage and from random answers about scenes with 0 to 20 objects. One kind of climb
looks for bad answers that earn much, the other for good answers that earn little. The table has the largest fault found
of each kind, in units of what the truth earns; 0 means that there was none. README.md explains the columns.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from itertools import accumulate
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parent))
from rewardsearch.answers import Attempt, mutated, random_attempt, starts
from rewardsearch.scenes import KINDS, Scene, scene_of
from vrft.rewards import Reward

CONFIGS = Path(__file__).parent.parent / "vrft" / "configs"
MIN_GAP = 0.2
"""Difference of F1 from which a pair in the wrong order is a fault."""
EPSILON = 1e-9
ANSWERS_PER_SCENE = 400
FAULTS = ("above the truth", "F1 in the wrong order", "surplus box pays", "leaving out pays", "lying pays", "unreadable pays")
