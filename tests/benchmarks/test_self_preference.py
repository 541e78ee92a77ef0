"""The questions by which the study of self-preference teaches a policy to judge."""

from __future__ import annotations

import self_preference as study

from vrft.data.datasets.digits import RenderedDigits
from vrft.policy import Policy
from vrft.types import Frame


def test_half_of_the_answers_to_judge_are_right_and_the_policy_knows_all_words() -> None:
    digits = RenderedDigits(40, seed=3)
    samples = [study.Judgements(digits)[i] for i in range(40)]
    asked = [(sample, digits[i].target) for i, sample in enumerate(samples) if sample.query]
    assert len(asked) == 20
    for sample, truth in asked:
        right = f"<answer>{truth}</answer>" in sample.query
        assert sample.target == (study.APPROVAL if right else study.DISAPPROVAL)
    assert sum(sample.target == study.APPROVAL for sample, _ in asked) == 10
    policy = Policy("tiny-digits")
    policy.read(keep_reference=False)
    task, frame = study.JudgingTask("Classify the digit"), Frame(1000, 1000)
    texts = [text for one in samples for text in (task.question(one, frame), task.target_text(one, frame))]
    ids = policy.tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert policy.tokenizer.unk_token_id not in [i for row in ids for i in row]
