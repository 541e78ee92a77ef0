"""A reference that follows the policy, against a plain loop over weights."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import CSV_ONLY, UNJUDGED, Command
from tests.helpers.finished import short_fit
from tests.helpers.ranks import Ranks
from tests.policy.test_lora import change, log_probs
from vrft import RFT
from vrft.__main__ import main
from vrft.errors import ConfigurationError
from vrft.policy import LoRA, Policy
from vrft.rewards import Format
from vrft.tasks import DetectionTask
from vrft.training import moving_reference
from vrft.training.module import VisionModule
from vrft.training.moving_reference import MovingReference, following
from vrft.training.strategies import ShardedRanks

KINDS: dict[str, dict[str, Any]] = {
    "full": {},
    "without the vision tower, offloaded": {"freeze_vision": True, "offload_reference": True},
    "adapters": {"lora": LoRA(r=4)},
    "adapters, offloaded": {"lora": LoRA(r=4, use_dora=True), "offload_reference": True},
}


def loaded(**settings: Any) -> Policy:
    torch.manual_seed(0)  # fresh adapters are random
    policy = Policy("tiny-detection", **({"dtype": "float32"} | settings))
    policy.load(keep_reference=False)
    return policy


def trained(policy: Policy) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in policy.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
def test_the_reference_is_the_policy_with_the_average_of_its_weights(settings: dict[str, Any]) -> None:
    policy = loaded(**settings)
    reference = MovingReference(policy, 0.7)
    reference.start()
    expected = trained(policy)
    for seed in range(3):
        change(policy, seed)
        reference.update()
        expected = {name: 0.7 * expected[name] + 0.3 * value for name, value in trained(policy).items()}
    other = loaded(**settings)
    for name, parameter in other.named_parameters():
        if name in expected:
            parameter.data = expected[name]
    before = log_probs(policy)
    with policy.reference_on_device():
        found = log_probs(policy, reference=True)
    torch.testing.assert_close(found, log_probs(other), rtol=0, atol=1e-4)
    assert torch.equal(log_probs(policy), before)  # the policy has its own weights again
    assert (found - before).abs().max() > 1e-2
    for name, value in reference.averages().items():
        torch.testing.assert_close(value, expected[name])


def test_averages_that_share_a_buffer_are_saved_by_themselves() -> None:
    """As those in page-locked memory do, which torch would save whole; it refuses two dtypes in one buffer."""
    policy = loaded(lora=LoRA(r=4))
    reference = MovingReference(policy, 0.9)
    reference.start()
    sizes = [average.nbytes for average in policy.start.values()]
    buffer = torch.zeros(sum(sizes) + 2**20, dtype=torch.uint8)
    for average, part in zip(policy.start.values(), buffer.split([*sizes, 2**20]), strict=False):
        average.data = part.view(average.dtype).view(average.shape).copy_(average)
    checkpoint: dict[str, Any] = {}
    reference.on_save_checkpoint(None, None, checkpoint)  # type: ignore[arg-type]
    saved = checkpoint["reference"].values()
    assert [average.untyped_storage().nbytes() for average in saved] == sizes
    assert all(torch.equal(*pair) for pair in zip(saved, policy.start.values(), strict=True))


def test_the_average_begins_with_the_model_in_every_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VisionModule, "configure_model", lambda self: self.policy.load(self.keep_reference))
    policy = Policy("tiny-detection", dtype="float32")
    module = RFT(DetectionTask(), policy, {"format": Format()}, reference_decay=0.9)
    module.configure_model()
    assert torch.equal(log_probs(policy, reference=True), log_probs(policy))


def test_the_average_of_another_policy_is_refused() -> None:
    reference = MovingReference(loaded(lora=LoRA(r=4)), 0.9)
    reference.start()
    other = MovingReference(loaded(lora=LoRA(r=2)), 0.9)
    other.start()
    with pytest.raises(ConfigurationError, match=r"model.reference_decay in the checkpoint, it has that of other"):
        reference.load(other.averages())
    with pytest.raises(ConfigurationError, match=r"model.reference_decay in the checkpoint, it has none"):
        reference.load({})


SETTINGS = [
    *("--model.reference_decay=0.6", "--model.beta=0.1", "--model.optimizer.lr=0.01", "--model.num_generations=4"),
    *("--model.policy.lora.r=4", "--model.policy.freeze_vision=true", "--model.policy.offload_reference=true"),
    *("--checkpoint.every_n_train_steps=1", "--checkpoint.save_top_k=-1", "--trainer.max_steps=2"),
    *(UNJUDGED, CSV_ONLY),
]


def checkpoint(run: Path, name: str = "last") -> dict[str, Any]:
    return torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """Return the function that builds the command of a run by its name; the run `whole` exists."""
    folder = tmp_path_factory.mktemp("moving")

    def build(name: str, *more: str) -> list[str]:
        return [*short_fit(folder, *SETTINGS), f"--run_dir={folder}/{name}", *more]

    assert main(build("whole", "--data.batch_size=4")) == 0
    return build


def run_of(words: list[str]) -> Path:
    return Path(next(word for word in reversed(words) if word.startswith("--run_dir=")).partition("=")[2])


def test_a_run_moves_the_reference_after_each_step_and_resumes_bit_for_bit(command: Command) -> None:
    whole = run_of(command("whole"))
    steps = [checkpoint(whole, f"step={step}") for step in (1, 2)]
    expected = steps[0]["reference"]
    for step in steps[1:]:
        expected = {name: 0.6 * value + 0.4 * step["state_dict"][f"policy.{name}"] for name, value in expected.items()}
        assert distance(step["reference"], expected) < 1e-6
    assert distance(steps[0]["reference"], steps[1]["reference"]) > 1e-3
    resumed = command("resumed", "--data.batch_size=4", f"--ckpt_path={whole}/checkpoints/step=1.ckpt")
    assert main(resumed) == 0
    found = checkpoint(run_of(resumed))
    for part in ("state_dict", "reference"):
        assert distance(found[part], steps[1][part]) == 0


def test_two_processes_have_the_reference_of_one(command: Command, two_ranks: Ranks) -> None:
    more = ["--data.batch_size=2", "--trainer.strategy=ddp", "--trainer.devices=2", "--trainer.accelerator=cpu"]
    together = command("together", *more)
    two_ranks.run(together)
    found, expected = checkpoint(run_of(together)), checkpoint(run_of(command("whole")))
    assert distance(found["reference"], expected["reference"]) < 3e-5


@pytest.mark.parametrize(
    ("decay", "beta", "said"),
    [
        (1.0, 0.04, "model.reference_decay: expected a number above 0 and below 1, got 1"),
        (0.0, 0.04, "model.reference_decay: expected a number above 0 and below 1, got 0"),
        (0.9, 0.0, "model.reference_decay=0.9 has no meaning with model.beta=0"),
    ],
)
def test_a_decay_without_a_meaning_is_refused(decay: float, beta: float, said: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(said)):
        following(Policy("tiny-detection"), decay, beta)


def test_shards_are_refused_before_the_model_is_read(
    quick_fit: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moving_reference, "parallelism_of", lambda trainer: ShardedRanks(trainer.strategy))
    assert main(quick_fit("--model.reference_decay=0.9")) == 2
    assert "model.reference_decay: fsdp2 can't let the reference follow" in capsys.readouterr().err
