"""Values of several sampled answers, against all subsets and by hand."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from statistics import mean
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from tests.helpers import CSV_ONLY
from tests.helpers.finished import short_fit
from vrft.__main__ import main
from vrft.callbacks.sampled_answers import SampledAnswers, label_free_scores
from vrft.cli.trainer import CommandTrainer
from vrft.errors import ConfigurationError
from vrft.evaluators import AccuracyEvaluator, Evaluator
from vrft.evaluators.base import judging_evaluator, quality_of
from vrft.evaluators.inference_scaling import Sampled, best_of, curves, fused, sizes, vote
from vrft.types import Answer, Detection, Sample


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_the_best_of_k_is_the_mean_over_all_subsets(k: int) -> None:
    rng = random.Random(k)
    values, keys = [rng.random() for _ in range(5)], [rng.random() for _ in range(5)]
    subsets = [*itertools.combinations(range(5), k)]
    assert best_of(values, k) == pytest.approx(mean(max(values[i] for i in some) for some in subsets))
    likeliest = mean(values[max(some, key=lambda i: keys[i])] for some in subsets)
    assert best_of(values, k, keys) == pytest.approx(likeliest)
    right = [0.0, 1.0, 0.0, 1.0, 0.0]
    assert best_of(right, k) == pytest.approx(mean(any(right[i] for i in some) for some in subsets))


def test_equal_keys_share_their_places() -> None:
    assert best_of([0.0, 1.0, 0.5], 2, [1.0, 1.0, 0.0]) == pytest.approx(0.5)


def test_shares_of_1_never_add_up_to_more() -> None:
    """The report refuses a file with a quality above 1."""
    assert {best_of([1.0] * n, k, [*range(n)]) for n in (18, 20, 43) for k in sizes(n)} == {1.0}


def test_thousands_of_answers_overflow_nothing() -> None:
    assert best_of([0.0, 1.0] * 1024, 1024) == pytest.approx(1.0)
    assert best_of([0.0, 1.0] * 1024, 1) == pytest.approx(0.5)


def answer(value: str | tuple[Detection, ...] | None) -> Answer:
    return Answer("", "", value, value is not None)


def test_the_most_common_name_wins() -> None:
    assert vote([answer(name) for name in ("dog", None, "Cat", "cat ", "dog", "cat")]) == "Cat"
    assert vote([answer("dog"), answer("cat")]) == "dog"
    assert vote([answer(None)]) is None


def test_boxes_that_most_answers_have_are_averaged() -> None:
    box = Detection((0, 0, 10, 10), "cat", 0.9)
    near = Detection((0, 0, 10, 12), "cat", 0.3)
    other = Detection((50, 50, 60, 60), "cat", 0.8)
    named = Detection((0, 0, 10, 10), "dog", 0.8)
    (found,) = fused([(box, other), (near,), (named,)])
    assert found.box == pytest.approx((0, 0, 10, (0.9 * 10 + 0.3 * 12) / 1.2))
    assert (found.label, found.score) == ("cat", pytest.approx(0.4))
    assert fused([(box,), (), ()]) == ()
    assert fused([(box,), (other,), ()]) == (Detection(box.box, "cat", pytest.approx(0.3)),)  # none has a majority
    unsure = Detection((0, 0, 10, 10), "cat", None)
    assert fused([(unsure,), (unsure,)]) == (unsure,)
    assert fused([(box, box, other)]) == (box, box, other)  # of one answer, whatever its boxes
    assert fused([(box, box, box), (box,)]) == (Detection(box.box, "cat", pytest.approx(0.9)),)
    assert fused([(box, near), (), (box,)])[0].score == pytest.approx((0.9 + 0.3 + 0.9) / 3)
    flat = Detection((5, 5, 5, 5), "cat", 0.5)  # no area, so no overlap with itself
    assert fused([(flat,), (flat,)]) == (flat._replace(score=0.25),)
    assert fused([(), ()]) == ()


def test_curves_are_means_over_questions_with_intervals_over_images() -> None:
    one = Sampled(
        "a", [0.0, 0.6, 1.0, 0.2], [-1.0, -2.0, -3.0, -0.5], {1: 0.45, 2: 0.5, 4: 0.7}, {"judge": [0.1, 0.2, 0.9, 0.3]}
    )
    two = Sampled("b", [0.0, 0.0, 0.0, 0.0], [-1.0, -1.0, -1.0, -1.0], {1: 0.0, 2: 0.0, 4: 0.0}, {"judge": [0.5] * 4})
    found = curves([one, two], success=0.5, resamples=50, seed=0)
    assert sizes(4) == [*found["pass"]] == [1, 2, 4]
    assert found["pass"][1].value == pytest.approx(0.25)
    assert found["pass"][2].value == pytest.approx((1 - 1 / 6) / 2)  # C(2, 2) / C(4, 2)
    assert found["best"][4].value == 0.5
    assert found["likeliest"][4].value == pytest.approx(0.1)
    assert found["best"][1].value == found["likeliest"][1].value == pytest.approx(0.225)
    assert found["vote"][4] == (pytest.approx(0.35), 0.0, pytest.approx(0.7))
    assert found["by judge"][4].value == pytest.approx((1.0 + 0.0) / 2)  # the answer with the largest score
    assert found["by judge"][1].value == pytest.approx(0.225)


@pytest.mark.slow
def test_a_test_with_samples_writes_the_same_curves_for_any_batch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    judge = "{class_path: SelfPreference, init_args: {approval: This, disapproval: 'No', weight: 0}}"
    for name, batch, more in (("test", 2, ["--budgets=[0,64]"]), ("validate", 5, [])):
        command = [name, *short_fit(tmp_path, CSV_ONLY)[1:], "--samples=3", f"--data.eval_batch_size={batch}"]
        assert main([*command, *more, f"--model.rewards.self={judge}", f"--run_dir={tmp_path}/{name}"]) == 0
        (file,) = (tmp_path / name).glob("evaluation/*/inference_scaling.json")
        found.append(json.loads(file.read_text()))
    first, second = found
    assert [*first["curves"]] == ["pass", "best", "likeliest", "vote", "by self"]
    (file,) = (tmp_path / "validate").glob("evaluation/*/answers.jsonl")
    greedy = [json.loads(line)["score"] for line in file.read_text().splitlines()]
    (file,) = (tmp_path / "test").glob("evaluation/*/thinking_budget.json")
    thinking = json.loads(file.read_text())
    assert thinking["curve"]["64"][0] == pytest.approx(mean(greedy), abs=1e-4)  # no thinking is cut
    assert thinking["tokens"]["0"] == 0 < thinking["tokens"]["64"] < 64
    assert first["questions"] == second["questions"] > 6
    for name, points in first["curves"].items():
        for k, point in points.items():
            assert point == pytest.approx(second["curves"][name][k], abs=1e-4)
    best = first["curves"]["best"]
    assert 0 < best["1"][0] < best["2"][0] < best["3"][0]
    assert "pass@k" in capsys.readouterr().out


def test_samples_without_a_meaning_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["test", *short_fit(tmp_path, CSV_ONLY)[1:], "--samples=2", "--against=base"]) == 2
    assert "samples: expected none with against" in capsys.readouterr().err
    with pytest.raises(ConfigurationError, match="samples: expected at least 2, got 0"):
        SampledAnswers(0, AccuracyEvaluator())


class Own(Evaluator[float]):
    """Says how good an answer is in a way of its own."""

    def row(self, answer: Answer, sample: Sample) -> float:
        return float(answer.text)

    def scores(self, rows: list[float]) -> dict[str, float]:
        return {}


class Judging(Own):
    def quality(self, row: float) -> float | None:
        return row


@pytest.mark.parametrize(("callbacks", "named"), [([], "none"), ([Own()], "Own")])
@pytest.mark.parametrize("option", ["samples", "budgets"])
def test_an_evaluator_that_judges_is_needed_before_anything_is_loaded(
    option: str, callbacks: list[Any], named: str
) -> None:
    trainer = CommandTrainer(accelerator="cpu", logger=False, callbacks=callbacks, enable_progress_bar=False)
    given: Any = {"samples": 2} if option == "samples" else {"budgets": [0]}
    module: Any = SimpleNamespace()
    with pytest.raises(ConfigurationError, match=rf"{option}: .* says how good an answer is .*got {named}$"):
        trainer.test(module, **given)
    assert judging_evaluator(SimpleNamespace(callbacks=[*callbacks, Judging()]), option).quality(0.5) == 0.5  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["nan", "1.5", "-0.1"])
def test_a_quality_that_is_no_share_is_refused_with_the_answer(value: str) -> None:
    about = Sample(0, (Image.new("RGB", (4, 4)),), "7.png", "cat", "one")
    assert quality_of(Judging(), Answer("0.25", "", None, True), about) == 0.25
    with pytest.raises(ConfigurationError, match=rf"Judging.quality: expected a number from 0 to 1, .*7\.png.*{value}"):
        quality_of(Judging(), Answer(value, "", None, True), about)


def test_an_answer_that_a_reward_does_not_apply_to_is_never_its_choice() -> None:
    reward: Any = SimpleNamespace(label_free=True, bounded_scores=lambda answers, samples: [None, -2.0])
    strategy = SimpleNamespace(reduce=lambda value, reduce_op: value, root_device="cpu")
    trainer = SimpleNamespace(global_rank=0, strategy=strategy)
    module: Any = SimpleNamespace(rewards={"own": reward}, trainer=trainer)
    keys = label_free_scores(module, [], [])["own"]
    assert best_of([0.0, 1.0], 2, keys) == 1.0
