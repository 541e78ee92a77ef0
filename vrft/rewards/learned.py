"""A learned reward: a Hugging Face sequence classifier of the question, the completion and, optionally, the images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from vrft.errors import ConfigurationError
from vrft.rewards.base import Reward
from vrft.types import Answer, Question, Sample

if TYPE_CHECKING:
    import torch


MAX_ROWS = 16
"""Maximum number of completions per forward pass, which bounds its memory."""


class RewardModel(Reward):
    """The classifier's probability: the sigmoid of a single logit, or the softmax of class `label` among several.

    A classifier with a vision tower, e.g. Gemma3ForSequenceClassification or Qwen3_5ForSequenceClassification, receives
    a chat: the images and the question, then the completion. Other classifiers receive the question and the completion
    as a pair of texts. Equal completions of a prompt are scored once.

    The classifier does not see the ground truth, so a wrong answer can earn more than the truth, and training will find
    such answers.
    """

    label_free = True
    model: torch.nn.Module

    def __init__(
        self,
        checkpoint: str,
        label: int = 0,
        max_length: int = 1024,
        question: str = "{query}",
        weight: float = 1.0,
    ) -> None:
        """Set the model, which is loaded before training starts.

        Args:
            checkpoint: folder or Hugging Face name of a sequence classification model.
            label: index of the class whose probability is the reward, if the model has several.
            max_length: number of tokens to which the text, or with images the completion, is truncated; at most the
                model's limit.
            question: text that the classifier expects before an answer, with the field {query}.
            weight: weight of the score in the sum of all rewards.
        """
        super().__init__(weight)
        self.checkpoint, self.label, self.max_length, self.question = checkpoint, label, max_length, question
        self.tokenizer: Any = None
        self.processor: Any = None
        """Processor of texts and images; None if the model reads only text."""

    def load(self) -> None:
        if self.tokenizer is None:
            from transformers import AutoModelForSequenceClassification, AutoTokenizer, ProcessorMixin

            from vrft.utils.hub import WITH_REPORT, check_loaded, loading
            from vrft.utils.hub_cache import name_or_cached
            from vrft.utils.processors import load_processor

            with loading("RewardModel.checkpoint", self.checkpoint):
                checkpoint = name_or_cached("RewardModel.checkpoint", self.checkpoint)
                self.tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False)
                model, info = AutoModelForSequenceClassification.from_pretrained(
                    checkpoint, use_safetensors=True, trust_remote_code=False, **WITH_REPORT
                )
                if "vision_config" in model.config.to_dict():
                    self.processor = load_processor(checkpoint)
            check_loaded("RewardModel.checkpoint", self.checkpoint, model, info, whole=False)
            self.model = model.requires_grad_(False).eval()
            if self.processor is not None:
                self.tokenizer = self._chat_tokenizer(ProcessorMixin)
            if self.tokenizer.pad_token is None:
                self.tokenizer.pad_token = self.tokenizer.eos_token
            model.config.get_text_config().pad_token_id = self.tokenizer.pad_token_id
            if not 0 <= self.label < model.config.num_labels:
                raise ConfigurationError(
                    f"model.rewards: RewardModel.label: {self.checkpoint} has {model.config.num_labels} classes, "
                    f"got {self.label}"
                )

    def _chat_tokenizer(self, kind: type) -> Any:
        """Return the processor's tokenizer. Raise ConfigurationError if the processor can't format a chat."""
        processor = self.processor
        if not isinstance(processor, kind) or self.processor.chat_template is None:
            raise ConfigurationError(
                f"RewardModel.checkpoint: {self.checkpoint} sees images; expected a processor of images and texts with "
                "a chat template"
            )
        self.processor.tokenizer.padding_side = "right"
        return self.processor.tokenizer

    def score(self, answer: Answer, sample: Question) -> float | None:
        return self.scores([answer], [sample])[0]

    def scores(self, answers: Sequence[Answer], samples: Sequence[Question]) -> Sequence[float | None]:
        found: list[float] = []
        for texts, about in _groups(answers, samples, alone=self.processor is None):
            pairs = [*zip(texts, map(self._question, about), strict=True)]
            distinct = [*dict.fromkeys(pairs)]
            by_pair: dict[tuple[str, str], float] = {}
            for start in range(0, len(distinct), MAX_ROWS):
                some = distinct[start : start + MAX_ROWS]
                by_pair |= zip(some, self._probabilities(self._inputs(some, about[0])), strict=True)
            found += [by_pair[pair] for pair in pairs]
        return found

    def _question(self, sample: Question) -> str:
        return self.question.replace("{query}", sample.query)

    def _inputs(self, pairs: Sequence[tuple[str, str]], about: Question) -> Any:
        """Return the model's inputs for (completion, question) pairs. With images, all pairs belong to one sample."""
        if self.processor is not None:
            return self._chat_inputs(pairs, about)
        return self.tokenizer(
            [(question, text) for text, question in pairs],
            truncation=True,
            max_length=min(self.max_length, self.tokenizer.model_max_length),
            padding=True,
            return_tensors="pt",
            split_special_tokens=True,  # a completion may contain the text of a special token, e.g. [SEP]
        )

    def _chat_inputs(self, pairs: Sequence[tuple[str, str]], about: Question) -> Any:
        if not isinstance(about, Sample):
            raise ConfigurationError(f"RewardModel.checkpoint: {self.checkpoint} needs the images, which are not here")
        chats = []
        for text, question in pairs:
            places = [{"type": "image"}] * len(about.images)
            asked = {"role": "user", "content": [*places, {"type": "text", "text": self._plain(question)}]}
            said = {"role": "assistant", "content": [{"type": "text", "text": self._shortened(self._plain(text))}]}
            chats.append([asked, said])
        texts = [self.processor.apply_chat_template(chat, tokenize=False) for chat in chats]
        images = [[image.convert("RGB") for image in about.images]] * len(pairs)
        return self.processor(text=texts, images=images, padding=True, return_tensors="pt", add_special_tokens=False)

    def _plain(self, text: str) -> str:
        """Break up the special tokens in a text, with which a completion could end its turn and begin another."""
        special = [token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        for token in sorted(special, key=len, reverse=True):
            text = text.replace(token, f"{token[0]} {token[1:]}")
        return text

    def _shortened(self, text: str) -> str:
        ends = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        return text if len(ends) <= self.max_length else text[: ends[self.max_length - 1][1]]

    def _probabilities(self, inputs: Any) -> list[float]:
        import torch

        with torch.no_grad():
            logits = self.model(**inputs.to(next(self.model.parameters()).device)).logits.float()  # (N, classes)
        scores = logits.sigmoid()[:, 0] if logits.shape[1] == 1 else logits.softmax(1)[:, self.label]
        found: list[float] = scores.tolist()
        return found


def _groups(
    answers: Sequence[Answer], samples: Sequence[Question], alone: bool
) -> Iterator[tuple[list[str], list[Question]]]:
    """Yield the answers to score together as (texts, samples). `alone`: one group per sample instead of one for all."""
    pairs = [*zip(answers, samples, strict=True)]
    for _, group in groupby(pairs, key=lambda pair: None if alone else id(pair[1])):
        members = [*group]
        yield [answer.text for answer, _ in members], [sample for _, sample in members]
