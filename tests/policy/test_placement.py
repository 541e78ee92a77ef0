"""Reading a checkpoint once for all ranks, and replacing its parameters one by one."""

from __future__ import annotations

import multiprocessing
import weakref
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from torch import nn

from vrft import RFT
from vrft.errors import ConfigurationError
from vrft.policy import Policy
from vrft.policy.placement import read_once
from vrft.policy.weights import replace_parameters
from vrft.rewards import Format
from vrft.tasks import DetectionTask


def read_on_rank(rank: int, store: Path, failing: list[int], kind: type[Exception]) -> str:
    """Return the error of a rank, empty if there is none."""

    def read(keep_reference: bool, values: bool) -> None:
        assert values == (rank == 0)
        if rank in failing:
            raise kind(f"the file is broken on rank {rank}")

    torch.set_num_threads(torch.get_num_threads())  # makes torch's thread pool again, before gloo's threads need it
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timedelta(seconds=600)
    )
    try:
        read_once(SimpleNamespace(read=read, models=[]), keep_reference=False)  # type: ignore[arg-type]
    except (ConfigurationError, KeyError) as error:
        return str(error)
    finally:
        dist.destroy_process_group()
    return ""


def test_an_error_of_one_rank_ends_all(tmp_path: Path) -> None:
    with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
        for failing in ([0], [1], [0, 1], []):
            store = tmp_path / f"store{failing}"
            tasks = [pool.submit(read_on_rank, rank, store, failing, ConfigurationError) for rank in (0, 1)]
            assert {task.result() for task in tasks} == {f"the file is broken on rank {failing[0]}" if failing else ""}


def test_an_error_that_nobody_expected_ends_the_other_rank_by_its_name(tmp_path: Path) -> None:
    with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
        tasks = [pool.submit(read_on_rank, rank, tmp_path / "store", [0], KeyError) for rank in (0, 1)]
        said = [task.result() for task in tasks]
    assert said[0] == "'the file is broken on rank 0'"
    assert said[1] == "model.policy.checkpoint: rank 0 can't read it: KeyError: 'the file is broken on rank 0'"


def test_a_processor_that_another_rank_refuses_ends_all(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    monkeypatch.setattr(trainer.strategy, "reduce", lambda value, reduce_op: torch.tensor(1.0))
    monkeypatch.setattr(trainer.strategy, "broadcast", lambda error, src: ConfigurationError(f"rank {src} failed"))
    monkeypatch.setattr("vrft.training.module.data_of", lambda _: SimpleNamespace(images_per_turn=lambda: [1]))
    module = RFT(DetectionTask(), Policy("tiny-detection"), {"format": Format()})
    module.trainer = trainer
    with pytest.raises(ConfigurationError, match="rank 1 failed"):
        module.configure_model()
    assert module.policy.processor is None


def test_parameters_are_replaced_without_a_second_copy_of_the_model() -> None:
    model = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(8)))
    model[3].weight = model[0].weight  # tied
    alive = [weakref.ref(parameter) for parameter in model.parameters()]
    each, peak = model[0].weight.nbytes, 0

    def count() -> int:
        return sum(found.nbytes for ref in alive if (found := ref()) is not None)

    def make(parameter: nn.Parameter) -> nn.Parameter:
        nonlocal peak
        made = nn.Parameter(parameter.detach().clone())
        alive.append(weakref.ref(made))
        peak = max(peak, count())
        return made

    replace_parameters(model, make)
    assert count() == 7 * each
    assert peak <= 8 * each
    assert model[3].weight is model[0].weight


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_out_of_memory_at_loading_says_what_needs_less(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("vrft.policy.reading.load_pretrained", fail)
    said = r"model\.policy\.checkpoint: .*out of memory while weights are read: .*; LoRA, another dtype or FSDP2 need"
    with pytest.raises(ConfigurationError, match=said):
        Policy("tiny-detection").load(keep_reference=False)
