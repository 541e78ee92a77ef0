"""Optimizers with states of few bits: steps are AdamW's up to the rounding of states, and resumed ones are exact."""

from __future__ import annotations

import importlib.util
import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from vrft.cli.named_configs import CONFIGS
from vrft.doctor.memory import optimizer_bytes
from vrft.errors import ConfigurationError
from vrft.training.checkpoint_io import AtomicCheckpointIO
from vrft.training.checkpoint_state import use_configured_settings
from vrft.training.stochastic_rounding import rounds_stochastically

SETTINGS: dict[str, Any] = {"lr": 1e-3, "weight_decay": 0.1}
SHIPPED = {
    path.stem: yaml.safe_load(path.read_text())["model"]["init_args"]["optimizer"]
    for path in sorted((CONFIGS / "optimizer").glob("*.yaml"))
}
ROUNDING = {"adamw_4bit": 0.2}
"""Largest gap after three steps, in parts of the update, where it is not that of 8 bits."""

BYTES = {"adamw_4bit": 1 + 2 * 4 / 128}
"""Bytes of state of a weight where they are not those of 8 bits with a scale for 256 of them."""

Make = Callable[..., torch.optim.Optimizer]


@pytest.fixture(params=SHIPPED)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def make(name: str) -> Iterator[Make]:
    """Yield a function that makes the optimizer of a shipped config. torchao would compile its step for seconds."""
    module, _, kind = SHIPPED[name]["class_path"].rpartition(".")
    own = getattr(pytest.importorskip(module), kind)
    settings = SETTINGS | SHIPPED[name].get("init_args", {})
    if not module.startswith("torchao"):
        yield lambda parameters: own(parameters, **settings)
        return
    with torch.compiler.set_stance("force_eager"):
        yield lambda parameters: own(parameters, **settings)


def gradients(steps: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    direction = torch.randn(64, 256, generator=generator)
    return [direction + torch.randn(64, 256, generator=generator) for _ in range(steps)]


def start() -> nn.Parameter:
    return nn.Parameter(torch.randn(64, 256, generator=torch.Generator().manual_seed(0)))


def step(optimizer: torch.optim.Optimizer, weight: nn.Parameter, gradient: Tensor) -> None:
    weight.grad = gradient.to(weight.dtype, copy=True)
    optimizer.step()


def test_steps_are_those_of_adamw_within_rounding(name: str, make: Make) -> None:
    """The first step has no rounded state; later ones differ by the rounding of moments, to 8 bits 1 % of an update."""
    weight, expected, first = start(), start(), start().detach()
    optimizer, reference = make([weight]), torch.optim.AdamW([expected], **SETTINGS)
    for number, gradient in enumerate(gradients(3)):
        step(optimizer, weight, gradient)
        step(reference, expected, gradient)
        gap = (weight - expected).norm() / (expected - first).norm()
        assert gap < (ROUNDING.get(name, 0.01) if number else 1e-4)
    assert gap > 1e-4  # states are rounded


def test_a_restored_optimizer_continues_bit_for_bit(make: Make) -> None:
    """With its learning rate in the form that it needs, after the config's settings are restored."""
    weight, restored = start(), start()
    optimizer, other = make([weight]), make([restored])
    *before, last = gradients(3)
    for gradient in before:
        step(optimizer, weight, gradient)
    file = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "weight": weight.detach()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other.load_state_dict(saved["optimizer"])
    use_configured_settings(other, [], None)
    restored.data.copy_(saved["weight"])
    step(optimizer, weight, last)
    step(other, restored, last)
    assert torch.equal(weight, restored)
    for mine, theirs in zip(optimizer.state[weight].values(), other.state[restored].values(), strict=True):
        assert torch.equal(mine, theirs) if type(mine) is Tensor else str(mine) == str(theirs)


def test_the_doctor_counts_states_and_their_scales(name: str, make: Make) -> None:
    module: Any = SimpleNamespace(optimizer_callable=make)
    assert optimizer_bytes(module) == pytest.approx(BYTES.get(name, 2 + 2 * 4 / 256), abs=0.01)


def test_a_checkpoint_of_torchao_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("torchao") is not None:
        pytest.skip("torchao is installed")
    module: Any = ModuleType("torchao.optim.states")
    module.State = type("State", (), {"__module__": module.__name__})
    with monkeypatch.context() as patched:
        for name in ("torchao", "torchao.optim", module.__name__):
            patched.setitem(sys.modules, name, module)
        torch.save({"state_dict": {}, "optimizer_states": [module.State()]}, tmp_path / "last.ckpt")
    with pytest.raises(ConfigurationError, match=r"last\.ckpt has states of torchao's optimizers: pip install"):
        AtomicCheckpointIO().read(tmp_path / "last.ckpt")


def test_only_one_shipped_optimizer_rounds_stochastically(name: str, make: Make) -> None:
    assert rounds_stochastically(make) == (name == "adamw_8bit_stochastic")


def test_stochastic_rounding_is_adamw_on_average() -> None:
    """Weights of 1 whose updates are 1/39 of a unit in the last place: the mean moves as AdamW's weights in float32."""
    optim = pytest.importorskip("torchao.optim")
    rounded = nn.Parameter(torch.ones(256, 1024, dtype=torch.bfloat16))
    expected = nn.Parameter(torch.ones(256, 1024))
    torch.manual_seed(0)
    with torch.compiler.set_stance("force_eager"):
        made = optim.AdamW8bit([rounded], lr=1e-4, weight_decay=0.0, bf16_stochastic_round=True)
        reference = torch.optim.AdamW([expected], lr=1e-4, weight_decay=0.0)
        for _ in range(3):
            step(made, rounded, torch.ones(256, 1024))
            step(reference, expected, torch.ones(256, 1024))
    moved = 1 - float(expected.detach().mean())
    assert moved == pytest.approx(3e-4, rel=1e-2)
    assert 1 - float(rounded.detach().float().mean()) == pytest.approx(moved, rel=0.05)
