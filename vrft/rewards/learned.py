"""A learned reward: a Hugging Face sequence classifier of the query and the completion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vrft.errors import ConfigurationError
from vrft.rewards.base import Reward
from vrft.types import Answer, Question

if TYPE_CHECKING:
    import torch


class RewardModel(Reward):
    """The classifier's probability: the sigmoid of a single logit, or the softmax of class `label` among several.

    The classifier sees no ground truth, so a wrong answer can earn more than the truth, and training finds such
    answers.
    """

    model: torch.nn.Module

    def __init__(self, checkpoint: str, label: int = 0, max_length: int = 1024, weight: float = 1.0) -> None:
        """Set the model, which is loaded before training starts.

        Args:
            checkpoint: folder or Hugging Face name of a sequence classification model.
            label: index of the class whose probability is the reward, if the model has several.
            max_length: tokens to truncate the text to, at most the model's own limit.
            weight: weight of the score in the sum of all rewards.
        """
        super().__init__(weight)
        self.checkpoint, self.label, self.max_length = checkpoint, label, max_length
        self.tokenizer: Any = None

    def load(self) -> None:
        if self.tokenizer is None:
            from transformers import AutoModelForSequenceClassification, AutoTokenizer

            from vrft.utils.hub import WITH_REPORT, check_loaded, loading
            from vrft.utils.hub_cache import name_or_cached

            with loading("RewardModel.checkpoint", self.checkpoint):
                checkpoint = name_or_cached("RewardModel.checkpoint", self.checkpoint)
                self.tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False)
                model, info = AutoModelForSequenceClassification.from_pretrained(
                    checkpoint, use_safetensors=True, trust_remote_code=False, **WITH_REPORT
                )
            check_loaded("RewardModel.checkpoint", self.checkpoint, model, info, whole=False)
            self.model = model.requires_grad_(False).eval()
            if self.tokenizer.pad_token is None:
                self.tokenizer.pad_token = self.tokenizer.eos_token
            model.config.pad_token_id = self.tokenizer.pad_token_id
            if not 0 <= self.label < model.config.num_labels:
                raise ConfigurationError(
                    f"model.rewards: RewardModel.label: {self.checkpoint} has {model.config.num_labels} classes, "
                    f"got {self.label}"
                )

    def score(self, answer: Answer, sample: Question) -> float | None:
        return self.scores([answer], [sample])[0]

    def scores(self, answers: Sequence[Answer], samples: Sequence[Question]) -> Sequence[float | None]:
        import torch

        texts = [(sample.query, answer.text) for answer, sample in zip(answers, samples, strict=True)]
        limit = min(self.max_length, self.tokenizer.model_max_length)
        inputs = self.tokenizer(
            texts,
            truncation=True,
            max_length=limit,
            padding=True,
            return_tensors="pt",
            split_special_tokens=True,  # a completion may spell [SEP]
        ).to(next(self.model.parameters()).device)
        with torch.no_grad():
            logits = self.model(**inputs).logits.float()  # (N, classes)
        scores = logits.sigmoid()[:, 0] if logits.shape[1] == 1 else logits.softmax(1)[:, self.label]
        return scores.tolist()
