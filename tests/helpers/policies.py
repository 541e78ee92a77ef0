"""Policies that are read once and copied, which takes a seventh of the time of reading them."""

from __future__ import annotations

import copy
from functools import cache

from vrft.policy import Policy


def fresh_policy(checkpoint: str) -> Policy:
    """Return a copy of a checkpoint's policy in float32, for a test to change."""
    return copy.deepcopy(_loaded(checkpoint))


@cache
def _loaded(checkpoint: str) -> Policy:
    policy = Policy(checkpoint, dtype="float32")
    policy.load(keep_reference=False)
    return policy
