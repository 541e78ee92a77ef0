"""Two processes train like one: under DDP and FSDP2, fully or with LoRA, and across checkpoints of each other."""

from __future__ import annotations

import csv
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.distributed.tensor import DTensor

from tests.helpers import CSV_ONLY
from tests.helpers.ranks import Ranks
from vrft.__main__ import main
from vrft.data.loaders import PromptSampler
from vrft.policy import Policy
from vrft.training.checkpoint_io import AtomicCheckpointIO
from vrft.training.module import VisionModule

STRATEGIES = ("one", "ddp", "fsdp2")
LORA = ["--model.policy.lora.r=4", "--model.policy.freeze_vision=true", "--model.optimizer.lr=0.004"]
KINDS = {
    "full": [],
    "lora": LORA,
    # ranks have different numbers of groups with a gradient, some have none
    "tied": ["--model.beta=0", "--model.temperature=0.1", "--model.max_extra_rollouts=1"],
    # ranks have different numbers of images in a micro-batch, of completions and of target texts
    "packed": [
        f"--model.{field}"
        for field in ("max_tokens_per_micro_batch=175", "num_minibatches=1", "num_iterations=4", "sft_weight=0.3")
    ],
    "sft": [],
}
LENGTHS = {"tied": 4, "sft": 4}
"""Rollouts or batches of the kinds that need more than two."""

ROUNDING = 3e-5
"""Tolerance for weights after a run, due to another order of summation; the steps move them 100 times as far."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parallel")


def fit(folder: Path, kind: str, strategy: str, *more: str, name: str | None = None, steps: int = 2) -> list[str]:
    """Return the command of a short run with a global batch of four, minibatches, micro-batches and two passes."""
    config = "quickstart_sft" if kind == "sft" else "quickstart"
    rft = ["num_iterations=2", "num_minibatches=2", "num_generations=4", "max_tokens_per_micro_batch=150"]
    steps_per_rollout = 1 if kind == "sft" else 4
    return [
        "fit",
        f"--config={config}",
        *(f"--data.{part}_annotations={folder}/{part}.json" for part in ("train", "val")),
        *(f"--data.{part}_images={folder}/{part}" for part in ("train", "val")),
        "--data.train_size=12",
        "--data.val_size=5",
        *(["--model.max_tokens_per_micro_batch=150"] if kind == "sft" else [f"--model.{field}" for field in rft]),
        f"--trainer.max_steps={steps * steps_per_rollout}",
        "--trainer.val_check_interval=100",
        "--transcripts.every_n_rollouts=1",
        CSV_ONLY,
        "--trainer.enable_progress_bar=false",
        f"--run_dir={folder}/{name or f'{kind}-{strategy}'}",
        *KINDS[kind],
        *on(strategy),
        *more,
    ]


def on(strategy: str) -> list[str]:
    """Return arguments for one or two processes with the same global batch."""
    if strategy == "one":
        return ["--data.batch_size=4"]
    if strategy == "layer":
        layer = "{class_path: vrft.training.strategies.FSDP2Strategy, init_args: {gather: layer}}"
        watch = f"--trainer.callbacks+={{class_path: {__name__}.LayersStayShared}}"
        return [*on("fsdp2"), f"--trainer.strategy={layer}", watch]
    if strategy == "shards":
        return [*on("fsdp2"), f"--trainer.strategy={SHARDS}"]
    return [
        "--data.batch_size=2",
        f"--trainer.strategy={strategy}",
        "--trainer.devices=2",
        "--trainer.accelerator=cpu",
    ]


class LayersStayShared(Callback):
    """Checks that decoder layers stay sharded in a rollout; results would not show a setting without effect."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        policy: Policy = pl_module.policy  # type: ignore[assignment]
        with policy.decoding() as model:
            assert all(isinstance(parameter, DTensor) for parameter in model.get_decoder().layers.parameters())
            assert not isinstance(model.get_output_embeddings().weight, DTensor)


class LittleMemory(Callback):
    """Makes the second rank run out of memory once, at the end of its first cross-entropy."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, VisionModule)
        cross_entropy = pl_module.cross_entropy
        backward, failures = cross_entropy.backward, [torch.OutOfMemoryError] * trainer.global_rank

        def learn_with_little(*args: Any) -> torch.Tensor:
            loss = backward(*args)
            if failures:
                raise failures.pop()
            return loss

        cross_entropy.backward = learn_with_little  # type: ignore[method-assign]


def continued(folder: Path, kind: str, first: str, second: str) -> list[str]:
    """Return the command that resumes a run of one step for one more, under another strategy."""
    checkpoint = f"--ckpt_path={folder}/{kind}-half-{first}/checkpoints/last.ckpt"
    return fit(folder, kind, second, checkpoint, UNJUDGED, name=f"{kind}-{first}-{second}")


def wider(folder: Path, strategy: str, steps: int = 3) -> list[str]:
    """Return the command that resumes a run with twice the global batch."""
    batch = f"--data.batch_size={8 if strategy == 'one' else 4}"
    checkpoint = f"--ckpt_path={folder}/full-one/checkpoints/last.ckpt"
    return fit(folder, "full", strategy, batch, checkpoint, UNJUDGED, name=f"wider-{strategy}-{steps}", steps=steps)


def held_out(folder: Path, command: str, strategy: str) -> list[str]:
    """Return the command to validate or test a checkpoint."""
    checkpoint = f"--ckpt_path={folder}/lora-half-one/checkpoints/last.ckpt"
    return [command, *fit(folder, "lora", strategy, checkpoint, name=f"{command}-{strategy}")[1:]]


SHARDS = "{class_path: vrft.training.strategies.FSDP2Strategy, init_args: {save_distributed_checkpoint: true}}"
UNJUDGED = "--trainer.limit_val_batches=0"
LITTLE_MEMORY = f"--trainer.callbacks+={{class_path: {__name__}.LittleMemory}}"
LAYER_BY_LAYER = [(kind, "layer") for kind in ("full", "lora")]
HELD_OUT = [("validate", "fsdp2"), ("test", "ddp")]
HANDOVERS = [("full", a, b) for a in STRATEGIES for b in STRATEGIES if a != b]
HANDOVERS += [("lora", "one", "fsdp2"), ("lora", "fsdp2", "ddp"), ("lora", "ddp", "one")]
HANDOVERS += [("full", "shards", "shards"), ("full", "shards", "one")]


@pytest.fixture(scope="module")
def runs(folder: Path, two_ranks: Ranks) -> Path:
    """Make all runs and return their folder."""
    whole = [(kind, strategy) for kind in KINDS for strategy in STRATEGIES if (kind, strategy) != ("tied", "one")]
    halves = [(kind, strategy) for kind in ("full", "lora") for strategy in STRATEGIES] + [("full", "shards")]
    commands = [
        (b, fit(folder, kind, b, *([] if kind == "full" else [UNJUDGED]), steps=LENGTHS.get(kind, 2)))
        for kind, b in whole + LAYER_BY_LAYER
    ]
    commands += [(b, fit(folder, kind, b, UNJUDGED, name=f"{kind}-half-{b}", steps=1)) for kind, b in halves]
    commands += [
        ("ddp", fit(folder, kind, "ddp", LITTLE_MEMORY, UNJUDGED, name=f"{kind}-little", steps=LENGTHS.get(kind, 2)))
        for kind in ("packed", "sft")
    ]
    commands += [(b, continued(folder, kind, a, b)) for kind, a, b in HANDOVERS]
    commands += [(b, wider(folder, b)) for b in STRATEGIES]
    commands += [("one", wider(folder, "one", steps=4))]
    commands += [(b, held_out(folder, command, b)) for command, several in HELD_OUT for b in ("one", several)]
    for strategy, command in commands:
        if strategy == "one":
            assert main(command) == 0
        else:
            two_ranks.run(command)
    return folder


def checkpoint(run: Path) -> dict[str, Any]:
    return AtomicCheckpointIO().load_checkpoint(run / "checkpoints" / "last.ckpt")


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def metrics(run: Path) -> list[dict[str, float]]:
    """Return the logged rows in the order of steps, without times and memory."""
    with next((run / "logs").glob("version_*/metrics.csv")).open() as file:
        rows = list(csv.DictReader(file))
    own = ("time/", "memory/", "train/samples_per_second")
    return [{key: float(value) for key, value in row.items() if value and not key.startswith(own)} for row in rows]


def rollouts(run: Path) -> dict[tuple[int, int, int], str]:
    entries = [json.loads(line) for line in (run / "transcripts.jsonl").read_text().splitlines()]
    return {(entry["rollout"], entry["sample"], entry["generation"]): entry["completion"] for entry in entries}


@pytest.mark.parametrize(
    ("kind", "strategy"),
    [*itertools.product(["full", "lora", "packed", "sft"], ["ddp", "fsdp2"]), ("full", "layer"), ("lora", "layer")],
)
def test_two_processes_train_as_one(runs: Path, kind: str, strategy: str) -> None:
    alone, together = checkpoint(runs / f"{kind}-one"), checkpoint(runs / f"{kind}-{strategy}")
    assert distance(alone["state_dict"], together["state_dict"]) < ROUNDING
    half = checkpoint(runs / f"{kind}-half-one")["state_dict"] if kind in ("full", "lora") else None
    assert half is None or distance(alone["state_dict"], half) > 30 * ROUNDING
    expected, found = metrics(runs / f"{kind}-one"), metrics(runs / f"{kind}-{strategy}")
    assert len(expected) == len(found) >= 4
    for one, other in zip(expected, found, strict=True):
        assert other == pytest.approx(one, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("kind", ["packed", "sft"])
def test_one_of_two_processes_can_run_out_of_memory_and_retry(runs: Path, kind: str) -> None:
    alone, found = (checkpoint(runs / f"{kind}-{name}")["state_dict"] for name in ("one", "little"))
    assert distance(alone, found) < ROUNDING
    expected, logged = metrics(runs / f"{kind}-one"), metrics(runs / f"{kind}-little")
    assert sum(row.pop("train/out_of_memory", 0) for row in logged) > 0
    for one, other in zip(expected, logged, strict=True):
        one.pop("train/out_of_memory", None)
        assert other == pytest.approx(one, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "layer"])
def test_two_processes_sample_what_one_samples(runs: Path, kind: str, strategy: str) -> None:
    expected, found = rollouts(runs / f"{kind}-one"), rollouts(runs / f"{kind}-{strategy}")
    assert len(found) == len(expected) / 2  # the first rank writes only its own rollouts
    assert found.items() <= expected.items()


def test_ranks_with_different_numbers_of_groups_with_a_gradient_do_not_deadlock(runs: Path) -> None:
    ddp, fsdp2 = (checkpoint(runs / f"tied-{strategy}") for strategy in ("ddp", "fsdp2"))
    assert distance(ddp["state_dict"], fsdp2["state_dict"]) < ROUNDING
    shares = [row["train/zero_variance_groups"] for row in metrics(runs / "tied-ddp") if "train/reward" in row]
    assert max(shares) > 0


@pytest.mark.parametrize(("kind", "first", "second"), HANDOVERS)
def test_a_checkpoint_resumes_under_another_strategy(runs: Path, kind: str, first: str, second: str) -> None:
    whole, parts = checkpoint(runs / f"{kind}-one"), checkpoint(runs / f"{kind}-{first}-{second}")
    assert distance(whole["state_dict"], parts["state_dict"]) < ROUNDING
    moments, same = (content["optimizer_states"][0]["state"] for content in (whole, parts))
    assert moments.keys() == same.keys() == whole["state_dict"].keys() - {"steps_done"}
    for name, state in moments.items():
        assert distance(state, same[name]) < ROUNDING


def test_a_sharded_run_resumes_bit_for_bit(runs: Path) -> None:
    whole, parts = checkpoint(runs / "full-fsdp2"), checkpoint(runs / "full-shards-shards")
    assert distance(whole["state_dict"], parts["state_dict"]) == 0
    folder = (runs / "full-shards-shards" / "checkpoints" / "last.ckpt").resolve()
    assert len([*folder.glob("*.safetensors")]) == 2
    largest = max(file.stat().st_size for file in folder.iterdir())
    assert largest < 0.6 * (runs / "full-fsdp2" / "checkpoints" / "last.ckpt").stat().st_size


def test_a_sharded_checkpoint_is_exported(runs: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    assert main(["export", str(runs / "full-shards-shards"), f"--output={tmp_path}"]) == 0
    found, expected = (load_file(path / "model.safetensors") for path in (tmp_path, runs / "full-fsdp2" / "export"))
    assert distance(expected, found) == 0


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_run_resumes_with_another_global_batch(runs: Path, strategy: str) -> None:
    alone, together = checkpoint(runs / "wider-one-3"), checkpoint(runs / f"wider-{strategy}-3")
    assert distance(alone["state_dict"], together["state_dict"]) < ROUNDING
    moved = checkpoint(runs / "full-one")["state_dict"]
    assert distance(alone["state_dict"], moved) > 30 * ROUNDING


def test_an_epoch_has_each_sample_once_with_any_global_batch(runs: Path) -> None:
    """Double the batch after 8 of 21 samples: the epoch ends after 16, since the remaining 5 fill no batch of 8."""

    def samples(run: str, rollout: int) -> list[int]:
        return [*dict.fromkeys(sample for number, sample, _ in rollouts(runs / run) if number == rollout)]

    questions = json.loads((runs / "train.json").read_text())["annotations"]
    assert len({(entry["image_id"], entry["category_id"]) for entry in questions}) == 21
    sampler = PromptSampler(21, 8, rank=0, world_size=1, seed=0, shuffle=True)
    assert samples("wider-one-3", 3) == list(sampler)[8:12]
    sampler.set_epoch(1)
    assert samples("wider-one-4", 4) == list(sampler)[:4]
    assert checkpoint(runs / "wider-one-4")["epoch"] == 1


@pytest.mark.parametrize(("command", "strategy"), HELD_OUT)
def test_held_out_numbers_do_not_depend_on_the_strategy(runs: Path, command: str, strategy: str) -> None:
    (expected,), (found,) = metrics(runs / f"{command}-one"), metrics(runs / f"{command}-{strategy}")
    assert len(expected) > 10
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_checkpoint_holds_only_trained_weights(runs: Path, strategy: str) -> None:
    content = checkpoint(runs / f"lora-{strategy}")
    assert all("lora_" in name or name == "steps_done" for name in content["state_dict"])
    assert (runs / f"lora-{strategy}" / "checkpoints" / "last.ckpt").stat().st_size < 600_000


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_the_exported_model_does_not_depend_on_the_strategy(runs: Path, kind: str) -> None:
    from safetensors.torch import load_file

    expected = load_file(runs / f"{kind}-one" / "export" / "model.safetensors")
    for strategy in ("ddp", "fsdp2"):
        found = load_file(runs / f"{kind}-{strategy}" / "export" / "model.safetensors")
        for name, weight in expected.items():  # in bfloat16, the dtype of the base
            torch.testing.assert_close(found[name], weight, rtol=2**-7, atol=ROUNDING)
