"""The share of a GPU that a vLLM server has beside the policy."""

from __future__ import annotations

import pytest

from vrft.doctor.memory import check_share


@pytest.mark.parametrize(
    ("share", "available", "policy", "copied", "said"),
    [
        pytest.param(0.4, 80.0, 16.0, 16.0, None, id="fits"),
        pytest.param(0.4, 24.0, 16.0, 8.0, "memory_share below 0.27", id="too-large"),
        pytest.param(0.2, 24.0, 6.0, 6.0, "memory_share above 0.25", id="too-small"),
    ],
)
def test_the_share_is_held_against_the_weights(
    share: float, available: float, policy: float, copied: float, said: str | None
) -> None:
    """On 24 GB: 24 - 16 - 1.5 = 6.5 are left, 0.27 of them all; a copy of 6 is 0.25."""
    found = [*check_share(share, available, policy, copied)]
    assert len(found) == (said is not None)
    assert said is None or said in found[0]
