"""Two processes train like one: under DDP and FSDP2, fully or with LoRA, and across checkpoints of each other."""

from __future__ import annotations

import csv
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from tests.helpers import CSV_ONLY, UNJUDGED
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
    if strategy in ("layer", "shards"):
        settings = "gather: layer" + ", save_distributed_checkpoint: true" * (strategy == "shards")
        layer = f"{{class_path: vrft.training.strategies.FSDP2Strategy, init_args: {{{settings}}}}}"
        watch = f"--trainer.callbacks+={{class_path: {__name__}.LayersStayShared}}"
        return [*on("fsdp2"), f"--trainer.strategy={layer}", watch]
    return [
        "--data.batch_size=2",
        f"--trainer.strategy={strategy}",
        "--trainer.devices=2",
        "--trainer.accelerator=cpu",
        *([f"--trainer.callbacks+={{class_path: {__name__}.SmallBuckets}}"] if strategy == "ddp" else []),
    ]


class SmallBuckets(Callback):
    """Checks that ranks begin with the same weights, and that gradients have no second copy in DDP's unused buckets."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        wrapped = trainer.strategy.model
        assert isinstance(wrapped, DistributedDataParallel)
        smallest = min(parameter.nbytes for parameter in pl_module.parameters() if parameter.requires_grad)
        assert wrapped._get_ddp_logging_data()["total_parameter_size_bytes"] == smallest
        sums = trainer.strategy.all_gather(torch.stack([parameter.sum() for parameter in pl_module.parameters()]))
        assert torch.equal(sums[0], sums[1])


class LayersStayShared(Callback):
    """Checks that decoder layers stay sharded in a rollout; results would not show a setting without effect."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        policy: Policy = pl_module.policy  # type: ignore[assignment]
        with policy.decoding() as decoding:
            model = decoding.model
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


KEPT = ["--checkpoint.every_n_train_steps=4", "--checkpoint.save_top_k=-1"]
"""Arguments for a checkpoint after every rollout."""
LITTLE_MEMORY = f"--trainer.callbacks+={{class_path: {__name__}.LittleMemory}}"
RESUMED = {
    "full-ddp": ("full-one", 1),
    "full-fsdp2": ("full-ddp", 2),
    "full-again": ("full-fsdp2", 3),
    "full-sharded": ("full-shards", 1),
    "full-unsharded": ("full-shards", 1),
    "lora-fsdp2": ("lora-one", 1),
    "lora-ddp": ("lora-layer", 1),
    "lora-again": ("lora-ddp", 2),
}
"""By run, the other run whose checkpoint it starts from, and the rollouts before that; then it makes one more.

One process, DDP and FSDP2 each continue what each of the others began. Two shards are read by two ranks and by one.
"""
HELD_OUT = [("validate", "fsdp2"), ("test", "ddp")]


def after(run: Path, count: int) -> Path:
    """Return the checkpoint of a run after a number of rollouts."""
    return next((run / "checkpoints").glob(f"*step={4 * count}.ckpt"))


def make(
    folder: Path, ranks: Ranks, name: str, *more: str, steps: int = 2, start: Path | None = None, command: str = "fit"
) -> None:
    """Make a run named after its kind and the strategy or purpose."""
    kind, _, purpose = name.partition("-")
    strategy = {"again": "one", "unsharded": "one", "sharded": "shards"}.get(purpose, purpose)
    begun = [] if start is None else [f"--ckpt_path={start}"]
    kind = kind if kind in KINDS else "lora" if command != "fit" else "full"
    words = [command, *fit(folder, kind, strategy, *begun, *more, name=name, steps=steps)[1:]]
    if strategy == "one":
        assert main(words) == 0
    else:
        ranks.run(words)


@pytest.fixture(scope="module")
def runs(folder: Path, two_ranks: Ranks) -> Path:
    """Make all runs and return their folder."""
    go = partial(make, folder, two_ranks)
    go("full-one", *KEPT, "--trainer.val_check_interval=1", steps=4)
    go("full-shards", *KEPT, UNJUDGED)
    go("lora-one", *KEPT, steps=3)
    go("lora-layer", *KEPT, UNJUDGED)
    for name, (before, count) in RESUMED.items():
        judged = [] if name in ("full-ddp", "full-fsdp2") else [UNJUDGED]
        go(name, *KEPT, *judged, steps=count + 1, start=after(folder / before, count))
    for kind, steps in (("packed", 2), ("sft", 4)):
        go(f"{kind}-one", UNJUDGED, steps=steps)
        go(f"{kind}-fsdp2", UNJUDGED, steps=steps)
        go(f"{kind}-ddp", UNJUDGED, LITTLE_MEMORY, steps=steps)
    for strategy in ("ddp", "fsdp2"):
        go(f"tied-{strategy}", UNJUDGED, steps=4)
    for strategy, batch in (("one", 8), ("ddp", 4)):
        half = after(folder / "full-one", 2)
        go(f"wider-{strategy}", f"--data.batch_size={batch}", UNJUDGED, steps=4, start=half)
    for command, strategy in HELD_OUT:
        go(f"{command}-{strategy}", start=after(folder / "lora-one", 3), command=command)
    return folder


def checkpoint(run: Path, count: int | None = None) -> dict[str, Any]:
    """Return the last checkpoint of a run, or that after a number of rollouts."""
    path = run / "checkpoints" / "last.ckpt" if count is None else after(run, count)
    return AtomicCheckpointIO().load_checkpoint(path)


def alone_and(runs: Path, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the checkpoint of one process after as many rollouts as the run `name` has made, and that run's."""
    kind, found = name.partition("-")[0], checkpoint(runs / name)
    count = int(found["state_dict"]["steps_done"]) if kind in ("full", "lora") else None
    return checkpoint(runs / f"{kind}-one", count), found


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def metrics(run: Path) -> list[dict[str, float]]:
    """Return the logged rows in the order of steps, without times and memory."""
    with next((run / "logs").glob("version_*/metrics.csv")).open() as file:
        rows = list(csv.DictReader(file))
    own = ("time/", "memory/", "train/samples_per_second")
    return [{key: float(value) for key, value in row.items() if value and not key.startswith(own)} for row in rows]


def by_rollout(rows: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Return rows of rollouts and of evaluations by the number of rollouts before them.

    The last evaluation of a run has another step and epoch than one that training follows.
    """
    found, count = {}, 0
    for row in rows:
        step, epoch = int(row.pop("step")), row.pop("epoch")
        if "train/grad_norm" in row:
            found[f"rollout {step}"], count = row | {"epoch": epoch}, step + 1
        else:
            found[f"evaluation {count}"] = row
    return found


def rollouts(run: Path) -> dict[tuple[int, int, int], str]:
    entries = [json.loads(line) for line in (run / "transcripts.jsonl").read_text().splitlines()]
    return {(entry["rollout"], entry["sample"], entry["generation"]): entry["completion"] for entry in entries}


TRAINED = [*RESUMED, "full-shards", "lora-layer", "packed-ddp", "packed-fsdp2", "sft-ddp", "sft-fsdp2"]


@pytest.mark.parametrize("name", TRAINED)
def test_two_processes_train_as_one(runs: Path, name: str) -> None:
    alone, together = alone_and(runs, name)
    assert distance(alone["state_dict"], together["state_dict"]) < ROUNDING
    moments, same = (content["optimizer_states"][0]["state"] for content in (alone, together))
    assert moments.keys() == same.keys() == alone["state_dict"].keys() - {"steps_done"}
    for parameter, state in moments.items():
        assert distance(state, same[parameter]) < ROUNDING


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_each_rollout_moves_the_weights_far_beyond_rounding(runs: Path, kind: str) -> None:
    before, after = (checkpoint(runs / f"{kind}-one", count)["state_dict"] for count in (1, 2))
    assert distance(before, after) > 30 * ROUNDING


@pytest.mark.parametrize("name", TRAINED)
def test_two_processes_log_what_one_logs(runs: Path, name: str) -> None:
    found, expected = (by_rollout(metrics(runs / run)) for run in (name, f"{name.partition('-')[0]}-one"))
    retried = [row.pop("train/out_of_memory", 0) for row in found.values()]
    assert (sum(retried) > 0) == (name in ("packed-ddp", "sft-ddp"))
    assert sum(key.startswith("rollout") for key in found) >= 2  # a resumed run repeats the last row before it
    assert ("evaluation 2" in found) == (name == "full-ddp")
    assert ("evaluation 3" in found) == (name == "full-fsdp2")
    for key, row in found.items():
        expected[key].pop("train/out_of_memory", None)
        assert row == pytest.approx(expected[key], rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("name", [name for name in TRAINED if name.startswith(("full", "lora"))])
def test_two_processes_sample_what_one_samples(runs: Path, name: str) -> None:
    kind, _, strategy = name.partition("-")
    expected, found = rollouts(runs / f"{kind}-one"), rollouts(runs / name)
    made = {rollout for rollout, *_ in found}
    share = 1 if strategy in ("again", "unsharded") else 2  # the first rank writes only its own rollouts
    assert len(found) == sum(rollout in made for rollout, *_ in expected) / share > 0
    assert found.items() <= expected.items()


def test_ranks_with_different_numbers_of_groups_with_a_gradient_do_not_deadlock(runs: Path) -> None:
    ddp, fsdp2 = (checkpoint(runs / f"tied-{strategy}") for strategy in ("ddp", "fsdp2"))
    assert distance(ddp["state_dict"], fsdp2["state_dict"]) < ROUNDING
    shares = [row["train/zero_variance_groups"] for row in metrics(runs / "tied-ddp") if "train/reward" in row]
    assert max(shares) > 0


def test_a_sharded_run_resumes_bit_for_bit(runs: Path) -> None:
    whole, parts = checkpoint(runs / "full-shards"), checkpoint(runs / "full-sharded")
    assert distance(whole["state_dict"], parts["state_dict"]) == 0
    folder = (runs / "full-sharded" / "checkpoints" / "last.ckpt").resolve()
    assert len([*folder.glob("*.safetensors")]) == 2
    largest = max(file.stat().st_size for file in folder.iterdir())
    assert largest < 0.6 * (runs / "full-fsdp2" / "checkpoints" / "last.ckpt").stat().st_size


def test_a_sharded_checkpoint_is_exported(runs: Path, tmp_path: Path) -> None:
    assert main(["export", str(runs / "full-sharded"), f"--output={tmp_path}"]) == 0
    found, expected = (load_file(path / "model.safetensors") for path in (tmp_path, runs / "full-shards" / "export"))
    assert distance(expected, found) == 0


def test_a_run_resumes_with_another_global_batch(runs: Path) -> None:
    alone, together = checkpoint(runs / "wider-one"), checkpoint(runs / "wider-ddp")
    assert distance(alone["state_dict"], together["state_dict"]) < ROUNDING
    moved = checkpoint(runs / "full-one")["state_dict"]
    assert distance(alone["state_dict"], moved) > 30 * ROUNDING


def test_an_epoch_has_each_sample_once_with_any_global_batch(runs: Path) -> None:
    """Double the batch after 8 of 21 samples: the epoch ends after 16, since the remaining 5 fill no batch of 8."""

    def samples(rollout: int) -> list[int]:
        return [*dict.fromkeys(sample for number, sample, _ in rollouts(runs / "wider-one") if number == rollout)]

    questions = json.loads((runs / "train.json").read_text())["annotations"]
    assert len({(entry["image_id"], entry["category_id"]) for entry in questions}) == 21
    sampler = PromptSampler(21, 8, rank=0, world_size=1, seed=0, shuffle=True)
    assert samples(3) == list(sampler)[8:12]
    sampler.set_epoch(1)
    assert samples(4) == list(sampler)[:4]
    assert checkpoint(runs / "wider-one")["epoch"] == 1


@pytest.mark.parametrize(("command", "strategy"), HELD_OUT)
def test_held_out_numbers_do_not_depend_on_the_strategy(runs: Path, command: str, strategy: str) -> None:
    (found,) = metrics(runs / f"{command}-{strategy}")
    found = {key.replace("test/", "val/"): value for key, value in found.items() if "/" in key}
    assert len(found) > 10
    # token probabilities have rounding errors that depend on the batch
    assert found == pytest.approx(by_rollout(metrics(runs / "lora-one"))["evaluation 3"], rel=1e-5)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_checkpoint_holds_only_trained_weights(runs: Path, strategy: str) -> None:
    content = checkpoint(runs / f"lora-{strategy}")
    assert all("lora_" in name or name == "steps_done" for name in content["state_dict"])
    assert (runs / f"lora-{strategy}" / "checkpoints" / "last.ckpt").stat().st_size < 600_000


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_the_exported_model_does_not_depend_on_the_strategy(runs: Path, tmp_path: Path, kind: str) -> None:
    alone = runs / f"{kind}-one"
    assert main(["export", str(alone), f"--ckpt={after(alone, 2)}", f"--output={tmp_path}"]) == 0
    expected = load_file(tmp_path / "model.safetensors")
    for strategy in {"full": ("ddp", "shards"), "lora": ("ddp", "fsdp2", "layer")}[kind]:
        found = load_file(runs / f"{kind}-{strategy}" / "export" / "model.safetensors")
        for name, weight in expected.items():  # in bfloat16, the dtype of the base
            torch.testing.assert_close(found[name], weight, rtol=2**-7, atol=ROUNDING)
