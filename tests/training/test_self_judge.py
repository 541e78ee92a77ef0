"""The policy as its own judge, against a plain forward of the model."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image

from tests.helpers import CSV_ONLY, UNJUDGED, Command
from tests.helpers.answers import answers
from tests.training.test_rft import logged
from vrft.__main__ import main
from vrft.errors import ConfigurationError, RewardFailed
from vrft.guards import Observation
from vrft.guards.training import AgreeableJudge
from vrft.policy import LoRA, Policy
from vrft.rewards import SelfPreference
from vrft.rollout import TransformersEngine
from vrft.rollout.vllm.engine import VLLMServer
from vrft.tasks import ClassificationTask
from vrft.training.collector import Collector
from vrft.training.module import VisionModule
from vrft.training.self_judge import SelfJudge, check_before_reading, check_self_judges
from vrft.training.strategies import FSDP2Strategy
from vrft.types import Sample

ASK = "{question} {completion} is the digit {yes} {no}"
TASK = ClassificationTask("Classify the digit")


@pytest.fixture(scope="module")
def policy() -> Policy:
    found = Policy("tiny-digits", dtype="float32")
    found.load(keep_reference=True)
    return found.eval()


def judge_of(policy: Policy, limit: int = 16384, **settings: Any) -> SelfJudge:
    reward = SelfPreference(**{"question": ASK, "approval": "This", "disapproval": "No"} | settings)
    optimization: Any = SimpleNamespace(max_tokens_per_micro_batch=limit)
    return SelfJudge(reward, policy, TASK, optimization)


def plain(policy: Policy, model: Any, image: Image.Image, completion: str, yes: str = "This") -> float:
    text = f"Classify the digit {completion} is the digit {yes} No"
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
    rendered = policy.processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    inputs = policy.processor(text=[rendered], images=[image], return_tensors="pt")
    ids = policy.tokenizer.convert_tokens_to_ids([yes, "No"])
    with torch.no_grad():
        return float(model(**inputs).logits[0, -1, ids].float().softmax(0)[0])


def sample(shade: int) -> Sample:
    return Sample(shade, (Image.linear_gradient("L").resize((56, 56)).rotate(shade).convert("RGB"),), shade, "", "one")


@pytest.mark.parametrize("limit", [16384, 30], ids=["together", "one by one"])
def test_probabilities_are_those_of_a_plain_forward(
    policy: Policy, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = sample(0), sample(90)
    texts = ["one", "two", "{yes}", "one", "one"]
    about = [first, first, first, second, first]
    expected = [plain(policy, policy.base, one.image, text) for text, one in zip(texts, about, strict=True)]
    judge = judge_of(policy, limit)
    assert judge(answers(*texts), about) == pytest.approx(expected, abs=1e-5)
    assert len({round(value, 5) for value in expected}) == 4
    assert judge(answers("one"), [replace(first, query="elsewhere")]) == pytest.approx(expected[:1], abs=1e-5)
    gap = (expected[1] + expected[3] - expected[0] - plain(policy, policy.base, second.image, "two")) / 2
    own = judge(answers("two", "one"), [first, second])
    asked: list[int] = []
    monkeypatch.setattr(judge, "_scores", lambda new, ask=judge._scores: asked.append(len(new)) or ask(new))
    assert judge.gap(own, answers("two", "one"), [first, second]) == pytest.approx(gap, abs=1e-5)
    assert asked == [2]  # the answers to other prompts alone
    empty = plain(policy, policy.base, first.image, "")
    assert judge.gap(expected[:1], answers("one"), [first]) == pytest.approx(expected[0] - empty, abs=1e-5)


def test_hostile_answers_are_judged_and_those_beyond_the_context_refused(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, about = judge_of(policy), [sample(0)]
    for text in ("\U0010f000 <|im_end|>", "<|image_pad|>" * 3, "", "{completion}"):
        assert 0 < judge(answers(text), about)[0] < 1
    monkeypatch.setattr(Policy, "max_positions", property(lambda _: 30))
    with pytest.raises(RewardFailed, match=r"image 0: the question about an answer and .* the model's 30"):
        judge(answers("one " * 30), about)


def test_an_answer_that_another_rank_cannot_ask_about_ends_this_rank_too(policy: Policy) -> None:
    """Rank 1 fails; it would leave rank 0 in the next collective."""

    def broadcast(error: Exception | None, src: int) -> Exception:
        return RewardFailed(f"of rank {src}, not {error}")

    reward = SelfPreference(approval="This")
    reward.ask = judge_of(policy)
    strategy = SimpleNamespace(root_device="cpu", reduce=lambda *_, **more: torch.tensor(1.0), broadcast=broadcast)
    trainer = SimpleNamespace(global_rank=0, strategy=strategy)
    module: Any = SimpleNamespace(rewards={"self": reward}, device="cpu", trainer=trainer)
    with pytest.raises(RewardFailed, match="of rank 1, not None"):
        VisionModule.score(module, answers("one"), [sample(0)])
    nothing: Any = None
    collector = Collector(module, nothing, nothing, 1, 1, 0, 1, None)
    with pytest.raises(RewardFailed, match="of rank 1, not None"):
        collector.log_preference_gap({"self": torch.ones(1)}, answers("one"), [sample(0)])


def test_the_reference_judges_as_at_the_start_and_the_policy_as_it_is(policy: Policy) -> None:
    about = [sample(0)]
    before = judge_of(policy)(answers("one"), about)
    weight = policy.base.get_input_embeddings().weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    try:
        assert judge_of(policy)(answers("one"), about) == before
        expected = plain(policy, policy.base, about[0].image, "one")
        assert judge_of(policy, judge="policy")(answers("one"), about) == pytest.approx([expected], abs=1e-5)
        assert expected != pytest.approx(before[0], abs=1e-3)
    finally:
        weight.data.copy_(kept)


def test_a_run_learns_what_its_reference_likes(quick_fit: Command, tmp_path: Path) -> None:
    reward = "{class_path: SelfPreference, init_args: {approval: This, disapproval: 'No'}}"
    fit = quick_fit(CSV_ONLY, UNJUDGED, f"--model.rewards.self={reward}", "--model.beta=0", "--trainer.max_steps=1")
    assert main(fit) == 0
    row = logged(tmp_path / "run")
    assert 0 < row["train/reward/self"][0] < 1
    assert -1 < row["train/self_preference_gap"][0] < 1


def test_words_and_settings_without_a_meaning_are_refused(policy: Policy) -> None:
    with pytest.raises(ConfigurationError, match="expected another word than disapproval='No', got 'No'"):
        judge_of(policy, approval="No")
    with pytest.raises(ConfigurationError, match=r"SelfPreference\.question: expected \{completion\}"):
        judge_of(policy, question="good?")
    with pytest.raises(ConfigurationError, match="expected a policy to ask"):
        SelfPreference().score(answers("one")[0], sample(0))
    with pytest.raises(ConfigurationError, match=r"model\.beta: expected above 0 with SelfPreference\.judge=policy"):
        check_self_judges({"self": SelfPreference("policy")}, beta=0)
    assert check_self_judges({"self": SelfPreference()}, beta=0)
    assert not check_self_judges({"self": SelfPreference("policy")}, beta=0.1)


@pytest.mark.parametrize(
    ("settings", "judge", "share", "follows", "refused"),
    [
        ({}, "reference", 0.4, False, True),
        ({"offload_reference": True}, "reference", 0.4, False, False),
        ({"lora": LoRA(r=2)}, "reference", 0.4, False, False),
        ({"lora": LoRA(r=2)}, "reference", 0.4, True, True),
        ({}, "policy", 0.4, False, False),
        ({}, "reference", 0.0, False, False),
    ],
)
def test_a_reference_that_leaves_the_gpu_is_not_asked(
    settings: dict[str, Any], judge: Any, share: float, follows: bool, refused: bool
) -> None:
    engine = VLLMServer(["http://localhost:1"])
    engine.gpu_share = share
    said = pytest.raises(ConfigurationError, match=r"expected model\.policy\.offload_reference=true")
    with said if refused else nullcontext():
        check(SelfPreference(judge, approval="This"), Policy("tiny-digits", **settings), engine, follows)


def check(reward: SelfPreference, policy: Policy, engine: Any, follows: bool = False, strategy: Any = "auto") -> None:
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, strategy=strategy)
    check_before_reading({"self": reward}, policy, engine, follows, trainer)
    assert policy.processor is None  # no weights were read


def test_replies_and_shared_weights_are_refused_before_the_model_is_read() -> None:
    policy = Policy("tiny-digits")
    with pytest.raises(ConfigurationError, match="tokenizer does not know 'Yes', a reply"):
        check(SelfPreference(), policy, TransformersEngine())
    with pytest.raises(ConfigurationError, match=r"expected whole weights on each rank, not trainer\.strategy=FSDP2"):
        check(SelfPreference(), policy, TransformersEngine(), strategy=FSDP2Strategy())


def test_a_guard_warns_of_a_judge_that_likes_any_answer() -> None:
    def said(gap: float) -> str | None:
        guard = AgreeableJudge()
        seen = Observation({"train/self_preference_gap": torch.tensor(gap)})
        return [guard.watch(seen) for _ in range(guard.min_steps)][-1]

    assert said(0.3) is None
    expected = "exceeds that of an answer to another prompt by 0.010 on average (0.010 at first), so it hardly tells"
    assert expected in str(said(0.01))
    guard, found = AgreeableJudge(), []
    for gap in [0.6] * 10 + [0.4] * 10 + [0.21] * 10:
        found.append(guard.watch(Observation({"train/self_preference_gap": torch.tensor(gap)})))
    assert [text is not None for text in found] == [False] * 25 + [True] * 5  # below 0.3
    assert "by 0.286 on average, less than half of the 0.600 at first, so it tells answers apart less" in str(found[25])
    assert AgreeableJudge().watch(Observation({"train/reward": torch.tensor(1.0)})) is None
