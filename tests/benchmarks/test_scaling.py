"""The arithmetic of benchmarks/scaling.py: limits and known values."""

from __future__ import annotations

import json
import statistics

import gpu_model
import pytest
import scaling

from vrft.indices import buckets
from vrft.training.strategies import ALLREDUCE_BUCKET_BYTES

TERMS = {"lengths": [10, 10, 40], "rows": 8, "rollout_base": 0.5, "rollout_per_token": 0.1, "rest": 2.0}


def test_one_rank_has_no_network() -> None:
    traffic = {"all_reduce": [57, 10**9], "all_gather": [9, 10**9], "reduce_scatter": [3, 10**9]}
    assert scaling.network_seconds(traffic, 1) == 0
    parts = scaling.step_seconds(TERMS, traffic, 1)
    assert parts["step"] == pytest.approx(0.5 + 0.1 * parts["longest"] + 2.0)


def test_many_ranks_wait_for_the_bandwidth_and_for_the_longest_completion() -> None:
    size = int(scaling.BANDWIDTH)  # one second of transfer
    assert scaling.network_seconds({"all_reduce": [0, size]}, 2) == pytest.approx(1)
    assert scaling.network_seconds({"all_reduce": [0, size]}, 1024) == pytest.approx(2, rel=2e-3)
    assert scaling.network_seconds({"all_gather": [0, size]}, 1024) == pytest.approx(1, rel=2e-3)
    assert scaling.network_seconds({"all_gather": [2, 0]}, 5) == pytest.approx(8 * scaling.LATENCY)
    assert scaling.step_seconds(TERMS, {}, 1024)["longest"] == pytest.approx(40)


def test_the_expected_maximum_of_one_draw_is_the_mean_and_of_two_dice_is_known() -> None:
    assert scaling.expected_maximum([3, 5, 10], 1) == pytest.approx(statistics.mean([3, 5, 10]))
    pairs = [max(a, b) for a in range(1, 7) for b in range(1, 7)]
    assert scaling.expected_maximum(range(1, 7), 2) == pytest.approx(statistics.mean(pairs))


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        pytest.param([], [], id="nothing-trains"),
        pytest.param([3, 3, 4], [[3, 3, 4]], id="full"),
        pytest.param([3, 3, 5, 1], [[3, 3], [5, 1]], id="one-more"),
        pytest.param([11, 1, 30], [[11], [1], [30]], id="larger-ones-are-separate"),
    ],
)
def test_gradients_travel_in_buckets(sizes: list[int], expected: list[list[int]]) -> None:
    assert [sizes[part] for part in buckets(sizes, 10)] == expected


def test_traffic_follows_from_the_bytes_of_the_weights() -> None:
    assert scaling.ddp_traffic([400, 40]) == {"all_reduce": [1, 440]}
    assert scaling.ddp_traffic([ALLREDUCE_BUCKET_BYTES, 4]) == {"all_reduce": [2, ALLREDUCE_BUCKET_BYTES + 4]}
    groups = [
        {"kind": "rest", "bytes": 1000, "trained_bytes": 600},
        {"kind": "layer", "bytes": 100, "trained_bytes": 100},
        {"kind": "reference layer", "bytes": 10, "trained_bytes": 0},
    ]
    one = scaling.fsdp2_traffic(groups, micro_batches=1)  # rollout, reference, forward and backward
    assert one == {"all_gather": [2 + 3 + 1, 2000 + 300 + 10], "reduce_scatter": [2, 700]}
    more = scaling.fsdp2_traffic(groups, micro_batches=3)
    assert more == {"all_gather": [4 + 7 + 3, 4000 + 700 + 30], "reduce_scatter": [6, 2100]}


def test_a_phase_on_a_gpu_takes_as_long_as_the_slowest_of_its_parts() -> None:
    gpu = gpu_model.Gpu("", operations=100, bandwidth=10, memory=1)
    clock = gpu_model.Clock(gpu, gpu_model.Speeds(matmul=0.5, memory=0.5, launch=1, node=0.1, sync=2))
    assert clock.seconds(operations=500, moved=1, launches=1) == pytest.approx(10)
    assert clock.seconds(operations=500, moved=100, launches=1) == pytest.approx(20)
    assert clock.seconds(operations=500, moved=100, launches=30, syncs=3) == pytest.approx(30 + 6)


def test_the_models_have_their_published_sizes() -> None:
    sizes = {model.name: (model.sizes.all / 1e9, model.vision / 1e9) for model in gpu_model.models()}
    assert sizes["3 B"] == pytest.approx((3.75, 0.67), abs=0.01)
    assert sizes["7 B"] == pytest.approx((8.29, 0.67), abs=0.01)


def test_the_written_model_of_gpus_is_what_the_counts_give() -> None:
    counts = json.loads((scaling.RESULTS / "gpu_counts.json").read_text())
    trl = json.loads((scaling.RESULTS / "gpu_counts_trl.json").read_text())
    assert (scaling.RESULTS / "scaling_gpu_model.md").read_text() == gpu_model.report(counts, trl, scaling.table)
