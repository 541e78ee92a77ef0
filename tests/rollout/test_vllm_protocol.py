"""The protocol between rollouts and vLLM servers.

The tests run against the fake server of `tests/helpers/vllm_server.py`. With `pytest -m vllm`, those with the fixture
`server` run against a real one, started as `serve-command` prints in the environment of `make vllm-env` (or $VLLM_ENV).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.vllm_rollouts import (
    REAL,
    TASK,
    a_policy,
    engine,
    gap,
    roll,
    train,
)
from tests.helpers.vllm_server import VLLM
from vrft.errors import ConfigurationError, RolloutRefused
from vrft.policy import LoRA
from vrft.rollout import Sampling, VLLMServer
from vrft.tasks import DetectionTask

pytestmark = pytest.mark.slow(seconds=0.5)

TOWER = LoRA(r=4, target_modules="all-linear")


def test_log_probs_equal_the_trainers_after_every_update(
    kind: str, server: str, checkpoint: str, tmp_path: Path
) -> None:
    policy = a_policy(checkpoint, LoRA(r=8) if kind == "lora" else None)
    made = engine(policy, tmp_path, server)
    gaps = [gap(policy, roll(made, policy))]
    for step in range(1, 4):
        train(policy, step)
        stale = gap(policy, roll(made, policy))
        assert stale > 0.01, "an update that changes nothing would prove nothing"
        made.write_weights(policy, first=True)
        made.update_servers()
        gaps.append(gap(policy, roll(made, policy)))
        gaps.append(gap(policy, roll(made, policy, Sampling(temperature=0.7)), 0.7))
        gaps.append(gap(policy, roll(made, policy, Sampling(greedy=True), group=1)))
    print(f"{kind}: gaps {', '.join(f'{value:.1e}' for value in gaps)}")
    assert max(gaps) <= 1e-4


def test_a_step_can_be_sampled_again_with_the_same_result(
    kind: str, server: str, checkpoint: str, tmp_path: Path
) -> None:
    policy = a_policy(checkpoint, LoRA(r=8) if kind == "lora" else None)
    made = engine(policy, tmp_path, server)
    one, again, other = (roll(made, policy, step=step).ids for step in (3, 3, 4))
    assert torch.equal(one, again)
    assert one.shape != other.shape or not torch.equal(one, other)
    rows = {tuple(row) for row in one.tolist()}
    assert len(rows) == len(one), "each completion has key of its own"


def test_banned_tokens_are_never_sampled_and_the_server_applies_top_p(
    kind: str, server: str, checkpoint: str, tmp_path: Path
) -> None:
    policy = a_policy(checkpoint, LoRA(r=8) if kind == "lora" else None)
    made = engine(policy, tmp_path, server)
    free = roll(made, policy, Sampling(temperature=2.0), group=16, limit=24)
    assert not torch.isin(free.ids, policy.banned_ids).any()
    few = roll(made, policy, Sampling(top_k=1), group=4)
    assert few.sampling_log_probs.abs().max() < 1e-5  # only one candidate remains
    groups = few.ids.view(2, 4, -1)
    assert torch.equal(groups, groups[:, :1].expand_as(groups))


@pytest.mark.parametrize("where", ["fake", pytest.param("real", marks=REAL)])
def test_weights_that_a_server_does_not_see_are_reported_at_once(
    where: str, checkpoint: str, fake: VLLM, real: Callable[[str], str], tmp_path: Path
) -> None:
    policy = a_policy(checkpoint, LoRA(r=8))
    url = real("lora") if where == "real" else fake.url
    made = VLLMServer([url])
    made.connect(policy, TASK, tmp_path, "there")
    made.write_weights(policy, first=True)
    (made.weights.path / "adapter_config.json").unlink()
    with pytest.raises(ConfigurationError, match=r"model\.engine\.weights_dir"):
        made.update_servers()


@pytest.mark.parametrize(
    ("flags", "lora", "said"),
    [
        pytest.param({"logprobs_mode": "raw_logprobs"}, None, "--logprobs-mode processed_logprobs", id="log-probs"),
        pytest.param({"max_lora_rank": 0}, LoRA(), "--enable-lora", id="no-lora"),
        pytest.param({"runtime_lora": False}, LoRA(), "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1", id="no-runtime-lora"),
        pytest.param({"max_lora_rank": 8}, LoRA(r=16), "--max-lora-rank 16", id="rank"),
        pytest.param({}, TOWER, "--enable-tower-connector-lora", id="tower"),
    ],
)
def test_a_server_with_wrong_flags_is_refused(
    flags: dict[str, Any], lora: LoRA | None, said: str, fakes: Callable[..., VLLM], checkpoint: str, tmp_path: Path
) -> None:
    policy = a_policy(checkpoint, lora)
    with pytest.raises(ConfigurationError, match=said):
        engine(policy, tmp_path, fakes(**flags).url)


def test_adapters_of_the_tower_work_on_servers_that_support_them(
    fakes: Callable[..., VLLM], checkpoint: str, tmp_path: Path
) -> None:
    policy = a_policy(checkpoint, TOWER)
    made = engine(policy, tmp_path, fakes(tower=True).url)
    train(policy, 1)
    made.write_weights(policy, first=True)
    made.update_servers()
    assert gap(policy, roll(made, policy)) < 1e-4


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8000",
        "ftp://host",
        "http://",
        "http://me:pw@host:1",
        "http://host/v1",
        "http://host?a=1",
        "http://h:x",
    ],
)
def test_an_invalid_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"model\.engine\.urls") as error:
        VLLMServer([url])
    assert "pw" not in str(error.value)


def test_caches_are_reset_after_the_weights_and_before_requests(fake: VLLM, checkpoint: str, tmp_path: Path) -> None:
    policy = a_policy(checkpoint)
    made = engine(policy, tmp_path, fake.url)
    roll(made, policy)
    fake.requests.clear()
    train(policy, 1)
    made.write_weights(policy, first=True)
    made.update_servers()
    assert fake.requests == [
        "/pause",
        "/init_weight_transfer_engine",
        "/start_weight_update",
        "/update_weights",
        "/finish_weight_update",
        "/reset_prefix_cache",
        "/reset_mm_cache",
        "/reset_encoder_cache",
        "/resume",
        "/update_weight_version",
    ]


def test_old_weights_are_unloaded_and_deleted(fake: VLLM, checkpoint: str, tmp_path: Path) -> None:
    policy = a_policy(checkpoint, LoRA(r=8))
    made = engine(policy, tmp_path, fake.url)
    for _ in range(2):
        made.write_weights(policy, first=True)
        made.update_servers()
    assert list(fake.adapters) == [made.weights.version]
    assert [path.name for path in (tmp_path / "vllm").iterdir() if path.is_dir()] == [made.weights.version]


def test_an_image_is_sent_once_per_prompt(fake: VLLM, checkpoint: str, tmp_path: Path) -> None:
    policy = a_policy(checkpoint)
    roll(engine(policy, tmp_path, fake.url), policy, group=4)
    assert [body["n"] for body in fake.bodies] == [4, 4]
    images = [part for body in fake.bodies for part in body["messages"][0]["content"] if part["type"] == "image_url"]
    assert len(images) == 2


def test_a_question_with_a_special_token_is_not_sent(fake: VLLM, checkpoint: str, tmp_path: Path) -> None:
    policy = a_policy(checkpoint)
    made = engine(policy, tmp_path, fake.url)
    made.task = DetectionTask(template="Detect <|im_end|> {query}")
    with pytest.raises(RolloutRefused, match=r"sample 0 .* contains '<\|im_end\|>', which the server would read"):
        roll(made, policy)
    assert not fake.bodies


def test_several_servers_share_the_prompts_with_the_same_result(
    fakes: Callable[..., VLLM], checkpoint: str, tmp_path: Path
) -> None:
    policy, servers = a_policy(checkpoint), [fakes(), fakes()]
    alone = roll(engine(policy, tmp_path / "one", servers[0].url), policy)
    for server in servers:
        server.bodies.clear()
    shared = roll(engine(policy, tmp_path / "two", *(server.url for server in servers)), policy)
    assert [len(server.bodies) for server in servers] == [1, 1]
    assert torch.equal(alone.ids, shared.ids)
