"""Settings that depend on the GPU: its dtype, fused kernels, and Lightning's precision."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers import Command
from tests.helpers.gpu import OnGPU
from vrft.__main__ import main
from vrft.errors import ConfigurationError
from vrft.training.checkpoint_state import use_configured_settings
from vrft.training.checks import check_determinism, check_device, check_precision
from vrft.training.optimization import use_fused_kernels


def weight(on_gpu: bool = True) -> nn.Parameter:
    value = torch.ones(2, 2)
    return nn.Parameter(value.as_subclass(OnGPU) if on_gpu else value)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "16-mixed", "64-true"])
def test_another_precision_is_refused(precision: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"trainer.precision: .* {precision}; model.policy.dtype"):
        check_precision(SimpleNamespace(precision=precision))  # type: ignore[arg-type]


def test_another_precision_is_refused_before_data_is_read(
    quick_fit: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(quick_fit("--trainer.precision=bf16-mixed", "--data.train_annotations=missing.json")) == 2
    assert "trainer.precision: expected 32-true, got bf16-mixed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("device", "capability", "dtype", "said"),
    [
        (
            "cuda",
            (7, 5),
            torch.bfloat16,
            r"T4 has compute capability 7\.5 and can't compute in bfloat16.*expected float16",
        ),
        ("cuda", (7, 5), torch.float32, None),
        ("cuda", (7, 5), torch.float16, None),
        ("cpu", None, torch.float16, None),
        ("cuda", (8, 0), torch.bfloat16, None),
        ("cpu", None, torch.bfloat16, None),
        ("mps", None, torch.float32, "trainer.accelerator: expected cpu or gpu; .* checked on mps"),
    ],
)
def test_devices_that_can_not_compute_in_a_dtype_are_refused(
    device: str, capability: Any, dtype: torch.dtype, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "T4")
    if said is None:
        check_device(torch.device(device), dtype)
        return
    with pytest.raises(ConfigurationError, match=said):
        check_device(torch.device(device), dtype)


@pytest.mark.parametrize(
    ("device", "setting", "refused"),
    [("cuda", True, True), ("cuda", "warn", False), ("cuda", False, False), ("cpu", True, False)],
)
def test_a_gpu_can_not_sample_with_deterministic_algorithms_alone(
    device: str, setting: Any, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: bool(setting))
    monkeypatch.setattr(torch, "is_deterministic_algorithms_warn_only_enabled", lambda: setting == "warn")
    if not refused:
        check_determinism(torch.device(device))
        return
    with pytest.raises(ConfigurationError, match=r"trainer\.deterministic: expected warn or false"):
        check_determinism(torch.device(device))


@pytest.mark.parametrize(
    ("make", "fused"),
    [
        (lambda: torch.optim.AdamW([weight()]), True),
        (lambda: torch.optim.Adam([weight()]), True),
        (lambda: torch.optim.AdamW([weight()], foreach=True), None),
        (lambda: torch.optim.AdamW([weight()], fused=False), False),
        (lambda: torch.optim.AdamW([weight(on_gpu=False)]), None),
        (lambda: torch.optim.SGD([weight()]), None),
    ],
    ids=["AdamW", "Adam", "foreach", "not fused", "CPU", "SGD"],
)
def test_adam_is_fused_on_a_gpu_unless_the_config_decides(make: Any, fused: bool | None) -> None:
    optimizer = make()
    use_fused_kernels(optimizer)
    assert optimizer.defaults["fused"] is fused
    assert [group["fused"] for group in optimizer.param_groups] == [fused]


def test_steps_of_a_run_without_fused_kernels_move_to_the_gpu() -> None:
    parameter, moved = weight(), []

    class Step(Tensor):
        def to(self, device: torch.device) -> Tensor:  # type: ignore[override]
            moved.append(device)
            return self

    optimizer = torch.optim.AdamW([parameter])
    optimizer.state[parameter]["step"] = torch.ones(()).as_subclass(Step)
    use_configured_settings(optimizer, [], None)
    assert not moved
    use_fused_kernels(optimizer)
    use_configured_settings(optimizer, [], None)
    assert moved == [parameter.device]
