"""What leaves the GPU while a server needs its memory."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing._internal.two_tensor import TwoTensor

from vrft.tasks import ClassificationTask
from vrft.training import gpu_room
from vrft.training.gpu_room import GPURoom
from vrft.training.rollouts import RemoteRollouts


def a_room(**policy: Any) -> tuple[GPURoom, dict[str, Tensor]]:
    """Return a room whose optimizer has one step's states, and these states."""
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight])
    weight.grad = torch.ones(3)
    optimizer.step()
    module = SimpleNamespace(trainer=SimpleNamespace(optimizers=[optimizer]))
    given = {"device": torch.device("cuda"), "reference": None, "start": {}} | policy
    return GPURoom(module, SimpleNamespace(**given)), optimizer.state[weight]  # type: ignore[arg-type]


def test_states_and_the_reference_can_leave_but_paged_states_stay() -> None:
    reference = nn.Linear(2, 2)
    average = torch.zeros(2)
    room, state = a_room(reference=reference, start={torch.ones(2): average})
    assert {*room.movable()} == {*state.values(), *reference.parameters(), average}
    state["exp_avg"].is_paged = True  # type: ignore[attr-defined]
    assert state["exp_avg"] not in {*room.movable()}


def test_the_tensors_inside_a_state_of_few_bits_can_leave() -> None:
    room, state = a_room()
    codes, scale = torch.zeros(3), torch.ones(3)
    state["exp_avg"] = TwoTensor(codes, scale)
    assert {codes, scale} < {*room.movable()}
    assert state["exp_avg"] not in {*room.movable()}


def copy_data(tensors: list[Tensor], device: torch.device) -> None:
    for tensor in tensors:
        tensor.data = tensor.data.clone()


def test_what_has_left_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The copies lie elsewhere and have the same values; the tensors stay the same objects."""
    room, state = a_room(device=torch.device("cpu"))
    monkeypatch.setattr(gpu_room, "move_to_cpu", copy_data)
    before, place = state["exp_avg"].clone(), state["exp_avg"].data_ptr()
    room.leave(torch.device("cpu"))
    assert state["exp_avg"].data_ptr() != place
    room.give_back()
    assert not room.moved
    assert torch.equal(state["exp_avg"], before)


@pytest.mark.parametrize(("share", "free", "left"), [(0.6, 5, 1), (0.6, 7, 0), (0.0, 1, 0)])
def test_nothing_leaves_unless_it_must(share: float, free: int, left: int, monkeypatch: pytest.MonkeyPatch) -> None:
    room, _ = a_room()
    calls: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 10))
    monkeypatch.setattr(room, "leave", calls.append)
    room.make(share)
    assert len(calls) == left


def test_nothing_leaves_without_a_gpu() -> None:
    room, _ = a_room(device=torch.device("cpu"))
    room.make(0.9)
    assert not room.moved


def test_a_server_is_started_for_all_images_of_a_prompt(tmp_path: Path) -> None:
    asked: list[int] = []

    def connect(policy: Any, task: Any, folder: Path, run: str, images: int) -> None:
        asked.append(images)

    engine: Any = SimpleNamespace(check=lambda policy: None, one_step_ahead=False, gpu_share=0.0, connect=connect)
    strategy = SimpleNamespace(
        broadcast=lambda value: value, reduce=lambda value, reduce_op: value, root_device=torch.device("cpu")
    )
    data = SimpleNamespace(images_per_prompt=lambda: 6)
    trainer = SimpleNamespace(strategy=strategy, world_size=1, default_root_dir=str(tmp_path), datamodule=data)
    policy = SimpleNamespace(device=torch.device("cpu"))
    module: Any = SimpleNamespace(trainer=trainer)
    RemoteRollouts(engine, module, policy, ClassificationTask()).connect()  # type: ignore[arg-type]
    assert asked == [6]
