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

    def is_of(self, text: ChatText, pictures: Sequence[Any]) -> bool:
        """Return whether this is the start with a text and these images."""
        same = len(pictures) == len(self.pictures)
        return same and text == self.text and all(a is b for a, b in zip(pictures, self.pictures, strict=True))


class ExampleCache:
    """The last examples that were encoded, and whether examples can be encoded on their own.

    They can if the tokens and pixels of both parts are those of the whole prompt, which the first prompt shows. They
    are not if the processor treats an image among others differently. Then each prompt is encoded as a whole, and
    shares nothing.
    """

    def __init__(self) -> None:
        self.splits: bool | None = None
        self.last: Start | None = None

    def can_split(self, plain: PlainText, rendered: ChatText, images: Sequence[Any], count: int) -> bool:
        """Return whether a prompt can be encoded in two parts, the first with `count` images."""
        if self.splits is None:
            self.splits = rendered.end_of_examples > 0
            if self.splits:
                first, rest = rendered.split()
                question = plain.encode(rest, images[count:], continues=True)
                parts = continued(self.start(plain, first, images[:count]), question)
                whole = plain.encode(rendered, images)
                self.splits = same_content(parts, whole)
        return self.splits

    def start(self, plain: PlainText, text: ChatText, pictures: Sequence[Any]) -> Start:
        """Return encoded examples; those of the last call are reused if they are the same."""
        if self.last is None or not self.last.is_of(text, pictures):
            output = plain.encode(text, pictures)
            tokens = {key: output[key] for key in TOKEN_KEYS if key in output}
            shared = SharedStart(output["input_ids"].shape[1], image_entries(output))
            self.last = Start(text, pictures, tokens, shared)
        return self.last


def same_content(parts: Prompt, whole: Prompt) -> bool:
    """Return whether a prompt in two parts has the tokens and, one after the other, the images of a whole one."""
    if any(not torch.equal(parts[key], whole[key]) for key in TOKEN_KEYS if key in whole):
        return False
    first, rest = (image_entries(part) for part in image_parts(parts))
    return all(follow(first[key], rest[key], value) for key, value in image_entries(whole).items())


def follow(first: torch.Tensor, rest: torch.Tensor, whole: torch.Tensor) -> bool:
    """Return whether the images of `whole` are those of two tensors: they are rows, or those of a batch of one."""
    dim = 1 if len(first) == len(rest) == len(whole) == 1 else 0
    fits = first.ndim == rest.ndim and first.shape[dim + 1 :] == rest.shape[dim + 1 :]
    return fits and torch.equal(torch.cat([first, rest], dim), whole)


def continued(start: Start, rest: Prompt) -> Prompt:
    """Return a prompt that begins with encoded examples."""
    tokens = {key: torch.cat([value, rest[key]], 1) for key, value in start.tokens.items()}
    return rest | tokens | {"start": start.shared}
