"""Training steps of RFT, configured through the command line where a user would."""

from __future__ import annotations

import csv
import dataclasses
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers import CSV_ONLY, Command
from tests.helpers.objectives import DEFAULT
from vrft.__main__ import main
from vrft.policy import Policy, shared_prefix
from vrft.policy.processor import MicroBatch
from vrft.policy.prompts import next_position
from vrft.rollout import TransformersEngine
from vrft.tasks import DetectionTask
from vrft.training.grpo import decoupled_advantages, replace_zero_variance, zero_variance_groups
from vrft.training.loss_inputs import Minibatch
from vrft.training.rft import RFT
from vrft.types import Answer, Frame, PromptBatch, Question, Rollout, ScoredRollout


@pytest.fixture
def quick_fit(quick_fit: Command) -> Command:
    """Return the function of the same name for runs without evaluations."""
    return partial(quick_fit, "--trainer.limit_val_batches=0")


def logged(run: Path) -> dict[str, list[float]]:
    """Return the values of every metric in the run's CSV log."""
    with next((run / "logs").glob("*/metrics.csv")).open() as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows if row[name]] for name in rows[0]}


SHORT, PACKED = "max_completion_length=30", "max_tokens_per_micro_batch=100"
FROZEN, OFFLOADED = "policy.freeze_vision=true", "policy.offload_reference=true"
DECOUPLED = "multi_objective_aggregation=normalize_then_sum"
FILTERED = ["top_p=0.9", "top_k=50", "min_p=0.01"]


@pytest.mark.parametrize(
    "more",
    [
        [
            "loss_type=bnpo",
            "scale_rewards=batch",
            "baseline=batch",
            "mask_truncated_completions=true",
            "overlong_buffer=20",
            SHORT,
        ],
        ["loss_type=dr_grpo", "scale_rewards=none", "leave_one_out=true", *FILTERED, "kl_estimator=k1"],
        [
            "loss_type=dapo",
            "epsilon_high=0.28",
            "delta=4",
            "beta=0",
            "max_extra_rollouts=1",
            "optimizer=Adafactor",
            FROZEN,
        ],
        [
            "loss_type=gspo",
            "epsilon=3e-4",
            "epsilon_high=4e-4",
            "kl_estimator=k2",
            "kl_in_reward=true",
            PACKED,
            OFFLOADED,
        ],
        ["loss_type=cispo", "num_minibatches=2", "num_iterations=2", "sft_weight=0.5", DECOUPLED, PACKED],
    ],
    ids=lambda more: more[0],
)
def test_every_setting_trains(more: list[str], quick_fit: Command, tmp_path: Path) -> None:
    settings = [f"--model.{setting}" for setting in ("num_generations=4", *more)]
    steps = f"--trainer.max_steps={4 if 'num_minibatches=2' in more else 2}"
    assert main(quick_fit(CSV_ONLY, "--data.batch_size=4", steps, *settings)) == 0
    metrics = logged(tmp_path / "run")
    assert max(metrics["train/grad_norm"]) > 0
    assert max(metrics["train/sampling_gap"]) < 1e-4  # the sampler's log-probabilities equal the trainer's
    assert all(value == value for values in metrics.values() for value in values), "NaN"


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("--model.num_minibatches=0", "model.num_minibatches: expected at least 1, got 0"),
        ("--model.num_minibatches=5", "model.num_minibatches: 5 parts of 4 prompts"),
        ("--model.overlong_buffer=300", "model.overlong_buffer"),
        ("--model.top_p=0", "model.top_p"),
        ("--model.sft_weight=-1", "model.sft_weight: expected a number of at least 0, got -1"),
        ("--model.temperature=0", "model.temperature"),
        ("--model.loss_type=ppo", "loss_type"),
        ("--model.delta=1.1", "model.delta: expected more than 1.2"),
    ],
)
def test_an_invalid_setting_is_refused_before_training(
    setting: str, said: str, quick_fit: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(quick_fit("--data.batch_size=4", setting)) == 2
    assert said in capsys.readouterr().err


def test_minibatches_keep_the_log_probs_of_the_weights_that_sampled(
    quick_fit: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gaps: list[float] = []
    loss = RFT.loss

    def watched(self: RFT, minibatch: Minibatch, micro: MicroBatch) -> Any:
        result = loss(self, minibatch, micro)
        mine = minibatch.inputs.select(micro.rows)
        gaps.append(float(((mine.old_log_probs - mine.sampled_log_probs) * mine.mask).abs().max()))
        return result

    monkeypatch.setattr(RFT, "loss", watched)
    steps = ["--data.batch_size=4", "--model.num_generations=4", "--model.num_minibatches=2"]
    steps += ["--model.num_iterations=2", "--trainer.max_steps=8", "--model.optimizer.lr=0.01"]
    assert main(quick_fit(CSV_ONLY, *steps)) == 0
    assert len(gaps) == 8
    assert max(gaps) < 1e-4


@pytest.mark.parametrize("sft", [True, False], ids=["SFT", "RFT"])
def test_a_target_text_beyond_the_context_is_refused(
    sft: bool, quick_fit: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Positions beyond the context would have other frequencies, or none that the model knows."""
    words = quick_fit("--model.max_completion_length=1", *([] if sft else ["--model.sft_weight=0.5"]))
    monkeypatch.setattr(Policy, "max_positions", property(lambda _: 30))
    assert main(["fit", "--config", "quickstart_sft", *words[3:]] if sft else words) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert re.search(
        r"sample \d+ \(image .*\): \d+ tokens of prompt and \d\d of its target text are more than", said
    ), said


def test_the_combined_gradient_is_that_of_both_losses(quick_fit: Command, tmp_path: Path) -> None:
    plain = "--model.optimizer={class_path: torch.optim.SGD, init_args: {lr: 0.1, momentum: 0, weight_decay: 0}}"
    step = [plain, "--model.lr_scheduler=null", "--model.max_grad_norm=1e9", "--data.batch_size=4"]
    step += ["--trainer.max_steps=1", CSV_ONLY]
    supervised = ["fit", "--config", "quickstart_sft", *quick_fit(*step)[3:]]

    def weights(name: str, command: list[str]) -> dict[str, Tensor]:
        assert main([*command, f"--run_dir={tmp_path}/{name}"]) == 0
        return torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]

    rft = weights("rft", quick_fit(*step))
    sft = weights("sft", supervised)
    both = weights("both", quick_fit(*step, "--model.sft_weight=0.3"))
    policy = Policy("tiny-detection", dtype="float32")
    policy.load(keep_reference=False)
    base = {f"policy.{name}": value for name, value in policy.named_parameters()}
    names = [name for name in both if name != "steps_done"]
    assert {*names} == {*base}
    moved = torch.cat([(both[name] - base[name]).flatten() for name in names])
    expected = torch.cat([(rft[name] - base[name] + 0.3 * (sft[name] - base[name])).flatten() for name in names])
    for part in (rft, sft):  # neither is negligible
        assert torch.cat([(part[name] - base[name]).flatten() for name in names]).norm() > 0.05 * moved.norm()
    torch.testing.assert_close(moved, expected, rtol=1e-3, atol=1e-6)
    metrics = logged(tmp_path / "both")
    assert metrics["train/sft_loss"] == pytest.approx(logged(tmp_path / "sft")["train/loss"], rel=1e-5)


class Fruit(DetectionTask):
    """A task whose target texts have a word that is unknown to the built-in policy's tokenizer."""

    def reasoning_text(self, sample: Question) -> str:
        return "apple"


def test_tokens_that_cannot_be_sampled_are_not_learnt(quick_fit: Command, tmp_path: Path) -> None:
    step = [CSV_ONLY, "--trainer.max_steps=1", f"--task={__name__}.Fruit", "--task.template=Detect {query}"]
    assert main(quick_fit(*step, "--model.sft_weight=0.1")) == 0
    assert 0 < logged(tmp_path / "run")["train/sft_loss"][0] < 10


def test_tied_groups_are_left_out_only_if_they_have_no_gradient(
    quick_fit: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []
    minibatches = RFT.minibatches

    def watched(self: RFT, scored: ScoredRollout) -> list[Minibatch]:
        def trained() -> list[int]:
            (minibatch,) = minibatches(self, scored)
            return [p for micro in minibatch.split(max_tokens=10**6) for p in micro.prompts]

        scored.advantages[:2] = 0.0  # two of four groups with four completions each
        seen.append(trained())
        result = minibatches(self, scored)
        scored.advantages = torch.zeros_like(scored.advantages)
        seen.append(trained())
        return result

    monkeypatch.setattr(RFT, "minibatches", watched)
    short = ["--data.batch_size=4", "--model.num_generations=4", "--trainer.max_steps=1"]
    assert main(quick_fit(*short, "--model.beta=0")) == 0
    assert [p for p in range(4) if p not in seen[0]] == [0, 1]
    assert seen[1] == [0]  # one stays, so that every rank runs a backward
    seen.clear()
    assert main(quick_fit(*short, "--model.beta=0.1")) == 0
    assert seen == [[0, 1, 2, 3]] * 2  # all have a KL term


def scored_rollout(totals: list[list[float]]) -> ScoredRollout:
    group, prompts = len(totals[0]), len(totals)
    rows = [(p, g) for p in range(prompts) for g in range(group)]
    ids = torch.tensor([[10 * p + g] for p, g in rows])
    values = torch.zeros(len(rows), 1)
    samples: list[Any] = [SimpleNamespace(index=p) for p in range(prompts)]
    return ScoredRollout(
        PromptBatch(samples, [Frame(1, 1)] * prompts, [{"input_ids": torch.tensor([[p]])} for p in range(prompts)]),
        Rollout(ids, torch.ones_like(ids), values, values, torch.zeros(len(rows), dtype=torch.bool), [""] * len(rows)),
        [Answer(f"{p}{g}", "", None, False) for p, g in rows],
        {"a": torch.tensor(totals).flatten()},
        torch.tensor(totals),
    )


def test_groups_of_zero_variance_are_replaced_in_place_while_others_are_available() -> None:
    pool = scored_rollout([[1.0, 1.0], [0.0, 1.0], [2.0, 2.0], [3.0, 3.0], [0.0, 2.0]])
    chosen = pool.select(replace_zero_variance(zero_variance_groups(pool.reward), 3))
    assert [sample.index for sample in chosen.batch.samples] == [4, 1, 2]  # one spare group has nonzero variance
    assert chosen.rollout.ids[:, 0].tolist() == [40, 41, 10, 11, 20, 21]
    assert [answer.text for answer in chosen.answers] == ["40", "41", "10", "11", "20", "21"]
    assert chosen.rewards["a"].tolist() == [0, 2, 0, 1, 2, 2]
    hopeless = scored_rollout([[1.0, 1.0]] * 4)
    assert replace_zero_variance(zero_variance_groups(hopeless.reward), 2) == [0, 1]


def test_every_rank_gets_its_part_of_decoupled_advantages() -> None:
    rewards = torch.rand(2, 3, 4, 2, generator=torch.Generator().manual_seed(0))  # (ranks, P, G, K)
    objective = dataclasses.replace(DEFAULT, multi_objective_aggregation="normalize_then_sum")
    named: Any = {
        "a": SimpleNamespace(weight=2.0),
        "off": SimpleNamespace(weight=0.0),
        "b": SimpleNamespace(weight=1.0),
    }
    whole = decoupled_advantages(rewards.flatten(0, 1), torch.tensor([2.0, 1.0])).view(2, 3, 4)
    for rank in range(2):
        scored = scored_rollout(rewards[rank].sum(-1).tolist())
        own = rewards[rank].flatten(0, 1)  # (N, K)
        scored.rewards = {"a": own[:, 0], "off": own[:, 0] * 9, "b": own[:, 1]}
        module: Any = SimpleNamespace(objective=objective, rewards=named, global_rank=rank, device=torch.device("cpu"))
        module.all_gather = lambda _: rewards
        torch.testing.assert_close(objective.signal(scored, named), rewards[rank])
        torch.testing.assert_close(RFT.advantages(module, scored), whole[rank])


def test_joined_rollouts_are_padded_to_the_longest() -> None:
    a, b = scored_rollout([[0.0, 1.0]]), scored_rollout([[1.0, 1.0]])
    longer = Rollout(*(torch.ones(2, 3, dtype=torch.long) for _ in range(4)), b.rollout.truncated, ["", ""])
    both = a.join(ScoredRollout(b.batch, longer, b.answers, b.rewards, b.reward))
    assert both.rollout.mask.tolist() == [[1, 0, 0], [1, 0, 0], [1, 1, 1], [1, 1, 1]]
    assert zero_variance_groups(both.reward).tolist() == [False, True]


def test_dynamic_sampling_is_bounded_and_continues_without_variance(
    quick_fit: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    generate = TransformersEngine.generate

    def counted(self: TransformersEngine, *args: Any, **settings: Any) -> Rollout:
        if not settings["sampling"].greedy:
            calls.append(settings["key"].first)
        return generate(self, *args, **settings)

    monkeypatch.setattr(TransformersEngine, "generate", counted)
    never = ["--model.rewards={format: {class_path: Format, init_args: {weight: 0.0}}}"]
    more = ["--data.batch_size=2", "--model.num_generations=2", "--model.max_extra_rollouts=2"]
    assert main(quick_fit(CSV_ONLY, *more, *never)) == 0
    assert calls == [0, 2, 4] * 2  # two steps; every group has zero variance, so every candidate is tried
    assert logged(tmp_path / "run")["train/extra_rollouts"] == [2, 2]


def test_a_model_with_wrong_prefix_sharing_is_trained_without_it(
    quick_fit: Command, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setattr(shared_prefix, "next_position", lambda x: next_position(x) + 3)
    assert main(quick_fit("--data.batch_size=2", "--model.num_generations=2", "--trainer.max_steps=1")) == 0
    assert any("prompts are repeated instead" in str(warning.message) for warning in recwarn)
