"""Guards: steps that raise each of them, steps that must not, and reports of a run."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from PIL import Image

from tests.helpers import CSV_ONLY, Command
from vrft.__main__ import main
from vrft.callbacks.guards import Guards, sample_weights
from vrft.guards import GUARDS, Guard, Observation
from vrft.guards.base import WINDOW
from vrft.guards.training import Overfitting, spacing
from vrft.training.progress_bar import PhaseProgressBar
from vrft.types import Answer, Detection, Sample

Box = tuple[float, float, float, float]
GUARD = {guard.name: guard for guard in GUARDS}


def step(samples: Sequence[Sample] = (), answers: Sequence[Answer] = (), **metrics: float) -> Observation:
    named = {f"train/{name}": torch.tensor(value) for name, value in metrics.items()}
    return Observation(named, samples, answers, None, limit=100)


def said(guard: Guard, steps: Sequence[Observation]) -> list[str | None]:
    return [guard.watch(seen) for seen in steps]


def ramp(name: str, start: float, end: float, count: int = 30, **fixed: float) -> list[Observation]:
    """Return steps in which a metric changes linearly from `start` to `end`."""
    return [step(**{name: start + (end - start) * i / (count - 1)}, **fixed) for i in range(count)]


def image(n: int, *truth: Box) -> Sample:
    return Sample(n, (Image.new("RGB", (100, 50)),), n, "cat", tuple(Detection(box, "cat") for box in truth))


def boxes(*found: Box, score: float | None = 0.5) -> Answer:
    return Answer("<think>", "", tuple(Detection(box, "cat", score) for box in found), True)


def rollouts(
    answer: Callable[[int], Answer],
    truth: Callable[[int], Box] = lambda n: (7 * n % 70, 0, 7 * n % 70 + 20, 20),
    prompts: int = 3,
) -> list[Observation]:
    """Return steps with `prompts` images and six answers each; both functions get a running number."""
    return [
        step(
            [image(n, truth(n)) for n in range(prompts * i, prompts * i + prompts)],
            [answer(n) for n in range(6 * i, 6 * i + 6)],
            valid=1.0,
            truncated=0.0,
        )
        for i in range(WINDOW)
    ]


def moving(n: int) -> Box:
    return (n % 60, n % 17, n % 60 + 15, n % 17 + 20)


WHOLE: Box = (0, 0, 100, 50)
FIXED: Box = (10, 10, 40, 40)


def unreadable(text: str, well_formed: bool = False) -> Callable[[int], Answer]:
    return lambda n: Answer(text, "", None, well_formed)


def without_format(answer: Callable[[int], Answer], truncated: float = 0.0) -> list[Observation]:
    samples = [image(0, FIXED)]
    return [step(samples, [answer(n) for n in range(4)], valid=0.0, truncated=truncated) for _ in range(WINDOW)]


PROVOKED: list[tuple[str, list[Observation], str]] = [
    ("no_format", without_format(unreadable("<think>and so on"), truncated=0.9), "90% are truncated at .*length=100"),
    ("no_format", without_format(unreadable("<answer>[]</answer>")), r"\(100%\) <think> is missing"),
    (
        "no_format",
        without_format(unreadable("<think>x</think><answer>[1]</answer>", True)),
        "answer block can't be parsed",
    ),
    ("no_format", without_format(unreadable("  ")), "it is empty"),
    ("equal_rewards", ramp("reward", 0.0, 0.0, zero_variance_groups=1.0), r"earned the same \(mean reward 0.00\)"),
    (
        "entropy_collapse",
        [*ramp("entropy", 0.9, 0.7, WINDOW), *ramp("entropy", 0.02, 0.01, WINDOW)],
        "entropy fell from 0.800 to 0.0150",
    ),
    ("growing_completions", ramp("completion_length", 20, 99, truncated=0.4), "grew from 32 to 87 tokens, and 40%"),
    ("whole_image", rollouts(lambda n: boxes(WHOLE)), "100% of the last 60 boxes are the whole image"),
    ("same_box", rollouts(lambda n: boxes(FIXED)), "100% of the last 60 answers .* whatever the image"),
    ("same_box", rollouts(lambda n: boxes(FIXED), prompts=1), "100% of the last 60 answers .* whatever the image"),
    ("duplicate_boxes", rollouts(lambda n: boxes(moving(n), moving(n))), "50% of the last 120 boxes repeat"),
    ("equal_confidences", rollouts(lambda n: boxes(moving(n), score=0.8)), "60 boxes state a confidence of 0.80"),
]

SILENT: list[tuple[str, list[Observation], str]] = [
    (
        "no_format",
        [*without_format(unreadable("x"))[1:], *rollouts(lambda n: boxes(FIXED))[:1]],
        "one right in a window",
    ),
    ("equal_rewards", ramp("zero_variance_groups", 0.8, 0.99, reward=2.0), "a few groups still differ"),
    ("entropy_collapse", ramp("entropy", 0.9, 0.2), "less entropy is what training is for"),
    ("entropy_collapse", ramp("entropy", 0.03, 0.01), "a policy that was sure from the start"),
    ("growing_completions", ramp("completion_length", 20, 60, truncated=0.0), "longer, with room"),
    ("growing_completions", ramp("completion_length", 90, 95, truncated=0.0), "long from the start"),
    ("whole_image", rollouts(lambda n: boxes(WHOLE), lambda n: WHOLE), "the object fills the image"),
    ("whole_image", rollouts(lambda n: boxes(FIXED)), "some box"),
    ("same_box", rollouts(lambda n: boxes(FIXED), lambda n: FIXED), "the true box is always there"),
    ("same_box", rollouts(lambda n: boxes(FIXED), lambda n: FIXED, prompts=1), "there in each rollout's one image"),
    ("same_box", rollouts(lambda n: boxes(WHOLE)), "that is said already"),
    ("same_box", rollouts(lambda n: boxes(moving(n))), "different boxes"),
    ("same_box", rollouts(lambda n: boxes()), "No Objects is no box"),
    ("duplicate_boxes", rollouts(lambda n: boxes(moving(n), (70, 0, 90, 10))), "two objects"),
    ("equal_confidences", rollouts(lambda n: boxes(moving(n), score=0.8 if n % 10 else 0.9)), "now and then another"),
    ("equal_confidences", rollouts(lambda n: boxes(moving(n), score=None)), "none is stated"),
]


@pytest.mark.parametrize(("name", "steps", "message"), PROVOKED)
def test_a_problem_raises_its_guard(name: str, steps: list[Observation], message: str) -> None:
    found = said(GUARD[name](), steps)
    assert found[: WINDOW - 1] == [None] * (WINDOW - 1)  # fewer steps than a window may be chance
    text = found[-1]
    assert text is not None
    assert "\n" not in text
    assert re.search(message, text), text
    if steps[0].samples:
        others = {other.name for other in GUARDS if said(other(), steps)[-1] is not None}
        assert others - {"equal_confidences"} == {name} - {"equal_confidences"}  # guards of one kind report one problem


@pytest.mark.parametrize(("name", "steps", "reason"), SILENT, ids=[f"{name}: {why}" for name, _, why in SILENT])
def test_a_harmless_run_raises_no_guard(name: str, steps: list[Observation], reason: str) -> None:
    assert said(GUARD[name](), steps) == [None] * len(steps)


@pytest.mark.parametrize(("prompts", "speaks"), [(1, 10), (2, 10), (4, 5), (8, 5)])
def test_equal_rewards_of_many_groups_are_reported_after_fewer_rollouts(prompts: int, speaks: int) -> None:
    samples = [image(n, FIXED) for n in range(prompts)]
    tied, not_tied = (step(samples, reward=0.0, zero_variance_groups=share) for share in (1.0, 0.9))
    found = said(GUARD["equal_rewards"](), [*[not_tied] * 12, *[tied] * 16])
    assert [text is not None for text in found].index(True) == 12 + speaks - 1
    assert f"the last {speaks} rollouts" in str(found[12 + speaks - 1])


def test_supervised_steps_have_no_completions_to_guard() -> None:
    steps = [step(loss=1.0, learning_rate=1e-4, grad_norm=1.0, skipped_steps=0.0) for _ in range(2 * WINDOW)]
    assert all(said(guard(), steps) == [None] * len(steps) for guard in GUARDS)


def trained(dtype: torch.dtype, rate: float, steps: int = WINDOW) -> list[Observation]:
    """Return steps of AdamW on weights of the size in language models."""
    generator = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(64, 64, bias=False).to(dtype)
    layer.weight.data = (torch.randn(64, 64, generator=generator) * 0.02).to(dtype)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=rate, weight_decay=0.0)
    found = []
    for _ in range(steps):
        module = torch.nn.Module()
        module.layer = layer
        before = sample_weights(module)  # type: ignore[arg-type]
        layer.weight.grad = torch.randn(64, 64, generator=generator).to(dtype)
        optimizer.step()
        after = sample_weights(module)  # type: ignore[arg-type]
        assert before is not None
        assert after is not None
        metrics = {"learning_rate": rate, "grad_norm": 1.0, "skipped_steps": 0.0}
        found.append(Observation({f"train/{k}": torch.tensor(v) for k, v in metrics.items()}, weights=(before, after)))
    return found


def test_bfloat16_weights_do_not_move_at_small_learning_rates() -> None:
    text = said(GUARD["tiny_updates"](), trained(torch.bfloat16, 1e-6))[-1]
    assert text is not None
    assert "the learning rate is 1.0e-06 and the next bfloat16 number is" in text
    assert "or float32 weights" in text


@pytest.mark.parametrize(("dtype", "rate"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-3)])
def test_updates_that_change_the_weights_are_not_reported(dtype: torch.dtype, rate: float) -> None:
    assert said(GUARD["tiny_updates"](), trained(dtype, rate))[-1] is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_spacing_is_the_distance_to_the_next_number(dtype: torch.dtype) -> None:
    for value in (1.0, 0.02, 3.7, 2.0**-10):
        weight = torch.tensor([value], dtype=dtype)
        following = torch.nextafter(weight, weight + 1) if dtype == torch.float32 else None
        expected = 2.0 ** (torch.frexp(weight.float())[1].item() - 8) if following is None else following - weight
        assert spacing(weight) == pytest.approx(float(expected))


def train(guard: Overfitting, rewards: Sequence[float], supervised: bool = False) -> None:
    for i, reward in enumerate(rewards):
        noise = 0.01 * (-1) ** i
        guard.watch(step(loss=-reward + noise) if supervised else step(reward=reward + noise))


@pytest.mark.parametrize("supervised", [False, True])
def test_a_held_out_drop_while_training_improves_is_reported(supervised: bool) -> None:
    guard = Overfitting()
    assert guard.evaluated({"coco/AP": 0.20, "reward": 1.0}) is None
    train(guard, [-1.5] * 20, supervised)
    assert guard.evaluated({"coco/AP": 0.30, "reward": 1.2}) is None
    train(guard, [-0.5] * 20, supervised)
    text = guard.evaluated({"coco/AP": 0.25, "reward": 1.3})
    assert text is not None
    what = "the loss fell from 1.500 to 0.500" if supervised else "the reward rose from -1.500 to -0.500"
    assert f"{what} in training while val/coco/AP fell from 0.300 to 0.250" in text
    assert guard.evaluated({"coco/AP": 0.31, "reward": 1.3}) is None  # the drop is over


@pytest.mark.parametrize(
    ("scores", "rewards", "why"),
    [
        ([0.30, 0.29], [1.0, 2.0], "a small fall"),
        ([0.010, 0.004], [1.0, 2.0], "a large part of next to nothing"),
        ([0.30, 0.20], [2.0, 1.0], "the reward falls as well: the guard is about those that don't agree"),
        ([0.30, 0.20], [1.0, 1.002], "a rise within the noise"),
        ([0.20, 0.30], [1.0, 2.0], "both rise"),
    ],
)
def test_harmless_held_out_scores_raise_no_warning(scores: list[float], rewards: list[float], why: str) -> None:
    guard = Overfitting()
    for score, reward in zip(scores, rewards, strict=True):
        train(guard, [reward] * WINDOW)
        assert guard.evaluated({"accuracy": score}) is None, why


def test_the_base_may_be_the_best() -> None:
    guard = Overfitting()
    guard.evaluated({"mIoU": 0.5})
    train(guard, [1 + 0.1 * i for i in range(40)])
    assert "fell from 0.500 to 0.300" in (guard.evaluated({"mIoU": 0.3}) or "")


def test_a_resumed_guard_gives_the_same_warnings() -> None:
    for name, steps, _ in PROVOKED:
        whole, first, second = GUARD[name](), GUARD[name](), GUARD[name]()
        said(first, steps[:7])
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert said(second, steps[7:]) == said(whole, steps)[7:]


# ------------------------------------------------------------------------------------------------------- whole runs

SMALL = ("--data.batch_size=2", "--model.num_generations=2", "--trainer.limit_val_batches=0", CSV_ONLY)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def logged(run: Path, name: str) -> list[float]:
    with (run / "logs" / "version_0" / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def test_a_run_reports_each_problem_once_and_a_resumed_run_not_again(quick_fit: Command, tmp_path: Path) -> None:
    run = tmp_path / "run"
    cut_off = ("--model.max_completion_length=4", "--checkpoint.every_n_train_steps=5", "--checkpoint.save_top_k=-1")
    with pytest.warns(
        UserWarning, match=r"guard no_format, rollout 10: at most 1% of the completions of the last 10 rollouts"
    ):
        assert main(quick_fit(*SMALL, *cut_off, "--trainer.max_steps=13")) == 0
    transcripts = lines(run / "transcripts.jsonl")
    assert {entry["rollout"] for entry in transcripts} == {1, 10, 13}  # every tenth, the first and the last
    assert all(entry["problem"].startswith("cut off at the limit of 4 tokens; ") for entry in transcripts)
    found = lines(run / "warnings.jsonl")
    assert {entry["guard"]: entry["rollout"] for entry in found} == {"no_format": 10, "equal_rewards": 10}
    assert len(found) == 2
    assert all({*entry} == {"rollout", "step", "guard", "message"} for entry in found)
    assert "100% are truncated at model.max_completion_length=4" in found[0]["message"]
    assert logged(run, "guards/no_format") == [1.0]
    (run / "warnings.jsonl").write_bytes(b'{"rollout": "x"}\n\xff\n[]\n{')  # the checkpoint has the reported warnings
    early = f"--ckpt_path={run}/checkpoints/step=5.ckpt"
    for checkpoint, steps in (("--ckpt_path=last", 15), (early, 13)):  # after and before the report
        assert main(quick_fit(*SMALL, *cut_off, f"--trainer.max_steps={steps}", checkpoint)) == 0
        assert lines(run / "warnings.jsonl") == found


def test_updates_lost_to_rounding_are_reported_unless_the_guard_is_off(quick_fit: Command, tmp_path: Path) -> None:
    tiny = (*SMALL, "--model.optimizer.lr=1e-13", "--trainer.max_steps=11")
    assert main(quick_fit(*tiny)) == 0
    assert [entry["guard"] for entry in lines(tmp_path / "run" / "warnings.jsonl")] == ["tiny_updates"]
    assert main(quick_fit(*tiny, "--guards.off=[tiny_updates]", f"--run_dir={tmp_path}/off")) == 0
    assert not (tmp_path / "off" / "warnings.jsonl").exists()


def test_the_bar_names_guards_that_are_raised(tmp_path: Path) -> None:
    bar, guards = PhaseProgressBar(), Guards()
    shown = {"progress_bar_callback": bar, "progress_bar_metrics": {"train/reward": 1.0}, "loggers": []}
    trainer = Mock(is_global_zero=False, default_root_dir=tmp_path, global_step=3, **shown)
    guards.on_train_start(trainer, Mock())
    assert bar.get_metrics(trainer, Mock()) == {"reward": 1.0}
    guards.report(guards.guards[0], "wrong", trainer, Mock(steps_done=3))
    assert bar.get_metrics(trainer, Mock()) == {"reward": 1.0, "guards": "no_format"}
    guards.report(guards.guards[0], None, trainer, Mock())
    assert bar.get_metrics(trainer, Mock()) == {"reward": 1.0}


def test_an_unknown_guard_is_refused(quick_fit: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(quick_fit("--guards.off=[entropy]")) == 2
    assert "guards.off: no guard is called 'entropy' (did you mean 'entropy_collapse'?)" in capsys.readouterr().err


def test_states_are_plain_values() -> None:
    guards = Guards()
    for guard in guards.guards:
        said(guard, PROVOKED[0][1])
    assert json.loads(json.dumps(guards.state_dict())) == guards.state_dict()
