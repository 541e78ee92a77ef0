"""Examples in prompts: their tokens and pixels are made once for all prompts that begin with them."""

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
    """The encoded examples of a prompt.

    Attributes:
        text: their chat.
        pictures: their images.
        tokens: entries of the processor's output with one value per token.
        shared: what the prompts share.
    """

    text: ChatText
    pictures: Sequence[Any]
    tokens: Prompt
    shared: SharedStart

    @classmethod
    def of(cls, text: ChatText, pictures: Sequence[Any], output: Prompt, length: int, images: Prompt) -> Start:
        """Return the first `length` tokens of a processor's output with what describes their images."""
        tokens = {key: output[key][:, :length] for key in TOKEN_KEYS if key in output}
        return cls(text, pictures, tokens, SharedStart(length, images))

    def begins(self, prompt: Prompt, images: Prompt) -> bool:
        """Return whether a prompt begins with these tokens, and its first images are described in the same way."""
        length, own = self.shared.length, self.shared.images
        return length > 0 and all(
            [
                *(torch.equal(prompt[key][:, :length], value) for key, value in self.tokens.items()),
                *(torch.equal(images[key], value) for key, value in own.items() if key != "batch_num_images"),
            ]
        )

    def is_of(self, text: ChatText, pictures: Sequence[Any]) -> bool:
        """Return whether this is the start with a text and these images."""
        same = len(pictures) == len(self.pictures)
        return same and text == self.text and all(a is b for a, b in zip(pictures, self.pictures, strict=True))


class ExampleCache:
    """The last examples that were encoded, and whether examples can be encoded on their own.

    They can if the tokens and pixels of both parts are those of the whole prompt, which the first prompt with so many
    images shows. They can't if the processor treats an image among others differently, as LLaVA-OneVision's, which cuts
    only a single image into tiles. Then each prompt is encoded as a whole and cut.
    """

    def __init__(self) -> None:
        self.splits: dict[tuple[int, int], bool] = {}
        """Whether the two parts can be encoded apart, by their numbers of images."""
        self.last: Start | None = None

    def prompt(self, plain: PlainText, rendered: ChatText, images: Sequence[Any], count: int) -> Prompt:
        """Return a prompt that begins with examples, `count` of its images; they are shared if they can be."""
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
    """Return how many tokens of a prompt those of its beginning are, or 0 if it doesn't begin like that.

    `alone`: the beginning without the rest; it may have another number of image tokens.
    """
    image = getattr(plain.processor, "image_token_id", None)
    texts = [prompt["input_ids"][0] != image for prompt in (alone, whole)]
    words = alone["input_ids"][0][texts[0]]
    places = texts[1].nonzero()[:, 0][: len(words)]
    return int(places[-1]) + 1 if torch.equal(whole["input_ids"][0][places], words) else 0


def cut_images(entries: Prompt, count: int, total: int) -> tuple[Prompt, Prompt] | None:
    """Return what describes the first `count` images and what describes the others, or None if rows aren't images.

    Both keep the number of the prompt's images, by which the model knows whether an image was alone.
    """
    alike = {key: value for key, value in entries.items() if key == "batch_num_images"}
    rows = {key: value for key, value in entries.items() if key not in alike}
    if any(len(value) != total for value in rows.values()):
        return None
    first, rest = ({key: value[part] for key, value in rows.items()} for part in (slice(count), slice(count, None)))
    return alike | first, alike | rest


def same_content(parts: Prompt, whole: Prompt) -> bool:
    """Return whether a prompt in two parts has the tokens and, one after the other, the images of a whole one."""
    if any(not torch.equal(parts[key], whole[key]) for key in TOKEN_KEYS if key in whole):
        return False
    first, rest = (image_entries(part) for part in image_parts(parts))
    return all(follow(first[key], rest[key], value) for key, value in image_entries(whole).items())


def follow(first: torch.Tensor, rest: torch.Tensor, whole: torch.Tensor) -> bool:
    """Return whether the images of `whole` are those of two tensors: they are rows, or those of a batch of one."""
    dim = 1 if whole.ndim > 1 and len(first) == len(rest) == len(whole) == 1 else 0
    fits = first.ndim == rest.ndim and first.shape[dim + 1 :] == rest.shape[dim + 1 :]
    return fits and torch.equal(torch.cat([first, rest], dim), whole)


def continued(start: Start, rest: Prompt) -> Prompt:
    """Return a prompt that begins with encoded examples."""
    tokens = {key: torch.cat([value, rest[key]], 1) for key, value in start.tokens.items()}
    return rest | tokens | {"start": start.shared}
