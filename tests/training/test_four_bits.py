"""Runs whose language model is in four bits: trained on one and two processes, resumed, exported, checked."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from tests.helpers import CSV_ONLY, UNJUDGED, Command
from tests.helpers.ranks import Ranks
from tests.training.test_skipped_steps import SMALL
from vrft.__main__ import main
from vrft.doctor.memory import copied_weights, scale_bytes
from vrft.policy import LoRA, Policy
from vrft.policy.four_bits import four_bit_layers
from vrft.rollout.vllm.flags import server_flags

pytest.importorskip("bitsandbytes")

LORA = "--model.policy.lora={r: 4, modules_to_save: [visual.merger]}"
FOUR_BITS = (LORA, "--model.policy.quantize=nf4", "--data.val_size=2", CSV_ONLY, *SMALL)
TWO = ("--trainer.devices=2", "--trainer.accelerator=cpu")


def weights(run: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return {name: value for name, value in state.items() if "lora" in name or "modules_to_save" in name}


def test_a_run_in_four_bits_resumes_bit_for_bit_and_trains_the_same_on_two_ranks(
    quick_fit: Command, two_ranks: Ranks, tmp_path: Path
) -> None:
    def fit(name: str, *more: str) -> list[str]:
        return [*quick_fit(*FOUR_BITS, *more), f"--run_dir={tmp_path / name}"]

    assert main(fit("whole", "--checkpoint.every_n_train_steps=1", "--checkpoint.save_top_k=-1")) == 0
    first = f"--ckpt_path={tmp_path}/whole/checkpoints/step=1.ckpt"
    assert main(fit("resumed", UNJUDGED, first)) == 0
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "resumed")
    merger = 6  # weights and biases of its norm and two linear layers
    assert len(whole) == 28 + merger
    assert any(value.any() for name, value in whole.items() if "lora_B" in name)
    assert all(torch.equal(whole[name], value) for name, value in resumed.items())
    two_ranks.run(fit("ddp", "--trainer.max_steps=2", "--trainer.strategy=ddp", "--data.batch_size=1", UNJUDGED, *TWO))
    for name, value in weights(tmp_path / "ddp").items():
        torch.testing.assert_close(value, whole[name], rtol=0, atol=1e-4)
    assert (tmp_path / "whole" / "export" / "adapter" / "adapter_model.safetensors").exists()


def test_sharded_ranks_refuse_four_bits(quick_fit: Command, two_ranks: Ranks, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"trainer\.strategy: fsdp2 can't shard weights in four bits; ddp can"):
        two_ranks.run(quick_fit(*FOUR_BITS, "--trainer.strategy=fsdp2", *TWO))


def test_the_doctor_counts_four_bits() -> None:
    policy = Policy("tiny-detection", lora=LoRA(r=4), quantize="nf4", dtype="bfloat16")
    policy.load(keep_reference=True)
    sizes = [math.prod(layer.weight.quant_state.shape) for layer in four_bit_layers(policy)]
    scales = sum(math.ceil(size / 64) + 4 * math.ceil(size / 64 / 256) for size in sizes)  # 1 byte a block, 4 for 256
    assert scale_bytes(policy.base) == scales + 2 * max(sizes)  # and one weight at a time in bfloat16
    frozen = [p for p in policy.model.parameters() if not p.requires_grad]
    assert sum(p.nbytes for p in frozen if not p.is_floating_point()) == sum(sizes) // 2
    dense = Policy("tiny-detection", lora=LoRA(r=4), dtype="bfloat16")
    dense.load(keep_reference=True)
    adapters = sum(p.numel() for p in policy.model.parameters() if p.requires_grad)
    assert copied_weights(policy.base, torch.bfloat16) == adapters  # which are not merged into weights in four bits
    assert copied_weights(dense.base, torch.bfloat16) == sum(sizes)


def test_a_server_quantises_as_the_trainer_does() -> None:
    flags = server_flags(Policy("tiny-detection", lora=LoRA(), quantize="nf4"))
    assert flags[flags.index("--quantization") + 1] == "bitsandbytes"
