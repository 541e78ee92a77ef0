"""Encode the few-shot examples of prompts once for all prompts that begin with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vrft.policy.plain_text import ChatText, PlainText
from vrft.policy.prompts import TOKEN_KEYS, Prompt, image_entries, image_parts
from vrft.types import SharedStart


@dataclass(frozen=True)
class Start:
    """The encoded few-shot examples of a prompt.

    Attributes:
        text: the chat of the examples.
        pictures: the images of the examples.
        tokens: entries of the processor's output with one value per token.
        shared: the part that prompts share.
    """

    text: ChatText
    pictures: Sequence[Any]
    tokens: Prompt
    shared: SharedStart

    @classmethod
    def of(cls, text: ChatText, pictures: Sequence[Any], output: Prompt, length: int, images: Prompt) -> Start:
        """Return the first `length` tokens of a processor's output, with the entries for their images."""
        tokens = {key: output[key][:, :length] for key in TOKEN_KEYS if key in output}
        return cls(text, pictures, tokens, SharedStart(length, images))

    def begins(self, prompt: Prompt, images: Prompt) -> bool:
        """Return whether a prompt begins with these tokens, and has the same entries for its first images."""
        length, own = self.shared.length, self.shared.images
        return length > 0 and all(
            [
                *(torch.equal(prompt[key][:, :length], value) for key, value in self.tokens.items()),
                *(torch.equal(images[key], value) for key, value in own.items() if key != "batch_num_images"),
            ]
        )

    def is_of(self, text: ChatText, pictures: Sequence[Any]) -> bool:
        """Return whether this is the encoding of a text and images."""
        same = len(pictures) == len(self.pictures)
        return same and text == self.text and all(a is b for a, b in zip(pictures, self.pictures, strict=True))


class ExampleCache:
    """Caches the examples that were encoded last, and whether examples can be encoded separately.

    They can if encoding the parts gives the tokens and pixels of the whole prompt. This is tested with the first prompt
    for each number of images. They can't if the processor treats single images differently, like LLaVA-OneVision's,
    which cuts only single images into tiles. Then each prompt is encoded as a whole and split.
    """

    def __init__(self) -> None:
        self.splits: dict[tuple[int, int], bool] = {}
        """Whether the two parts can be encoded separately, by their numbers of images."""
        self.last: Start | None = None

    def prompt(self, plain: PlainText, rendered: ChatText, images: Sequence[Any], count: int) -> Prompt:
        """Return a prompt that begins with examples, which have `count` of its images, shared if possible."""
        if not rendered.end_of_examples:
            return plain.encode(rendered, images)
        numbers = count, len(images) - count
        if self.splits.get(numbers, True):
            last = self.last
            parts = self._apart(plain, rendered, images, count)
            if numbers in self.splits:
                return parts
            self.splits[numbers] = same_content(parts, plain.encode(rendered, images))
            if self.splits[numbers]:
                return parts
            self.last = last
        return self._cut(plain, rendered, images, count)

    def _apart(self, plain: PlainText, rendered: ChatText, images: Sequence[Any], count: int) -> Prompt:
        text, rest = rendered.split()
        if self.last is None or not self.last.is_of(text, images[:count]):
            output = plain.encode(text, images[:count])
            self.last = Start.of(text, images[:count], output, output["input_ids"].shape[1], image_entries(output))
        return continued(self.last, plain.encode(rest, images[count:], continues=True))

    def _cut(self, plain: PlainText, rendered: ChatText, images: Sequence[Any], count: int) -> Prompt:
        whole, (text, _) = plain.encode(rendered, images), rendered.split()
        parts = cut_images(image_entries(whole), count, len(images))
        if parts is None:
            return whole
        if self.last is None or not self.last.is_of(text, images[:count]):
            length = start_length(plain, plain.encode(text, images[:count]), whole)
            self.last = Start.of(text, images[:count], whole, length, parts[0])
        if not self.last.begins(whole, parts[0]):
            return whole
        tokens = {key: whole[key] for key in TOKEN_KEYS if key in whole}
        return tokens | parts[1] | {"start": self.last.shared}


def start_length(plain: PlainText, alone: Prompt, whole: Prompt) -> int:
    """Return the number of tokens of a prompt that its beginning takes, or 0 if the prompt does not begin with it.

    `alone` is the beginning encoded separately, which may have another number of image tokens.
    """
    image = getattr(plain.processor, "image_token_id", None)
    texts = [prompt["input_ids"][0] != image for prompt in (alone, whole)]
    words = alone["input_ids"][0][texts[0]]
    places = texts[1].nonzero()[:, 0][: len(words)]
    return int(places[-1]) + 1 if torch.equal(whole["input_ids"][0][places], words) else 0


def cut_images(entries: Prompt, count: int, total: int) -> tuple[Prompt, Prompt] | None:
    """Split the entries for images after the first `count` images. Return None if their rows are not images.

    Both parts keep the number of images in the prompt, which tells the model whether an image was the only one.
    """
    alike = {key: value for key, value in entries.items() if key == "batch_num_images"}
    rows = {key: value for key, value in entries.items() if key not in alike}
    if any(len(value) != total for value in rows.values()):
        return None
    first, rest = ({key: value[part] for key, value in rows.items()} for part in (slice(count), slice(count, None)))
    return alike | first, alike | rest


def same_content(parts: Prompt, whole: Prompt) -> bool:
    """Return whether the parts of a prompt, concatenated, have the tokens and images of the whole prompt."""
    if any(not torch.equal(parts[key], whole[key]) for key in TOKEN_KEYS if key in whole):
        return False
    first, rest = (image_entries(part) for part in image_parts(parts))
    return all(follow(first[key], rest[key], value) for key, value in image_entries(whole).items())


def follow(first: torch.Tensor, rest: torch.Tensor, whole: torch.Tensor) -> bool:
    """Return whether `whole` is the concatenation of two tensors, along the rows or along those of a batch of one."""
    dim = 1 if whole.ndim > 1 and len(first) == len(rest) == len(whole) == 1 else 0
    fits = first.ndim == rest.ndim and first.shape[dim + 1 :] == rest.shape[dim + 1 :]
    return fits and torch.equal(torch.cat([first, rest], dim), whole)


def continued(start: Start, rest: Prompt) -> Prompt:
    """Return a prompt that begins with encoded examples."""
    tokens = {key: torch.cat([value, rest[key]], 1) for key, value in start.tokens.items()}
    return rest | tokens | {"start": start.shared}
