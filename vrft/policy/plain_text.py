"""Tokenise text of users or models without interpreting names of special tokens in it.

Otherwise a category called `<|im_end|>` would end the user's turn, and `<image>` would require another image. Text
without such names is tokenised as by `apply_chat_template(tokenize=True)`.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import torch

from vrft.errors import ConfigurationError
from vrft.policy.chat_template import chat_text
from vrft.policy.prompts import TOKEN_KEYS, Prompt
from vrft.utils.display import LONE_SURROGATE

MARK, SEGMENT = 0x10F000, 0x10F800
"""First private-use characters that stand for special names in user text, and for pieces of a prompt."""
ANSWER = 0x10E000
"""First private-use character that stands for an earlier answer while a chat is rendered."""
MAX_SEGMENTS = 64
FORMAT_TAGS = {"<think>", "</think>", "<answer>", "</answer>"}
"""Tags of the answer format, which prompts and targets contain. In some tokenizers they are special tokens."""
PRIVATE = re.compile("[\U0010e000-\U0010ffff]")


class ChatText(NamedTuple):
    """A chat as text.

    Attributes:
        text: the text, with `MARK` characters in place of special names in the messages.
        names: the special names.
        end_of_examples: index of the first special token after the last earlier answer; 0 if there is none.
    """

    text: str
    names: Sequence[str]
    end_of_examples: int = 0

    def split(self) -> tuple[ChatText, ChatText]:
        """Return the text up to `end_of_examples`, and the rest."""
        end = self.end_of_examples
        return ChatText(self.text[:end], self.names), ChatText(self.text[end:], self.names)


class PlainText:
    """The special names of a processor, and tokenisation that does not interpret them in user text."""

    def __init__(self, processor: Any) -> None:
        tokenizer = processor.tokenizer
        added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        attributes = {**vars(processor), **tokenizer.special_tokens_map}
        named = {str(value) for name, value in attributes.items() if name.endswith("_token") and value is not None}
        self.names = sorted({*added, *tokenizer.all_special_tokens, *named} - FORMAT_TAGS - {""}, key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, self.names)) or "(?!)")
        self.processor = processor

    @cached_property
    def with_segments(self) -> Any:
        """A copy of the processor whose tokenizer has one token for each `SEGMENT` character.

        Added tokens that are not special, such as LLaVA's <image>, are special in the copy, so that
        `split_special_tokens` applies to them.
        """
        from tokenizers import AddedToken

        tokenizer = copy.deepcopy(self.processor.tokenizer)
        names = [AddedToken(name, normalized=False, special=True) for name in self.names]
        tokenizer.add_tokens(names, special_tokens=True)
        tokenizer.add_tokens([AddedToken(chr(SEGMENT + i), normalized=False) for i in range(MAX_SEGMENTS)])
        copied = copy.copy(self.processor)
        copied.tokenizer = tokenizer
        return copied

    def found(self, texts: Sequence[str]) -> str | None:
        """Return the first special name in any of the texts, or None."""
        return next((match[0] for text in texts if (match := self.pattern.search(text))), None)

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of texts, without bos or eos."""
        whole = self.processor.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        pairs = zip(texts, whole, strict=True)
        return [self._plain(text, first=True) if self.found([text]) else ids for text, ids in pairs]

    def prompt(self, chat: Sequence[dict[str, Any]], images: Sequence[Any]) -> Prompt:
        """Return the processor's output for a chat with images, see `render` and `encode`."""
        return self.encode(self.render(chat), images)

    def render(self, chat: Sequence[dict[str, Any]]) -> ChatText:
        """Return a chat as text, with marks for special names in its messages.

        Raises:
            ConfigurationError: a message has a lone surrogate, or the template leaves out earlier answers.
        """
        if broken := next((text for text in chat_texts(chat) if LONE_SURROGATE.search(text)), None):
            raise ConfigurationError(f"a prompt has half a character, a lone surrogate: {broken[:200]!r}")
        originals: list[str] = []
        if self.found(chat_texts(chat)):
            chat = self._marked(chat, originals)
        text, end = whole_chat(self.processor, chat)
        following = self.pattern.search(text, end) if end else None  # tokens never merge across a special token
        return ChatText(text, originals, following.start() if following else 0)

    def encode(self, rendered: ChatText, images: Sequence[Any], *, continues: bool = False) -> Prompt:
        """Return the processor's output for the text of a chat with images.

        Args:
            rendered: the text.
            images: its images.
            continues: whether the text follows another text, so that bos must not be added.

        Raises:
            ConfigurationError: the tokenizer still converts a special name in the messages to a special token.
        """
        text, originals, _ = rendered
        # like `apply_chat_template(tokenize=True)`, don't add a second bos
        bos = self.processor.tokenizer.bos_token
        once = {"add_special_tokens": False} if continues or (bos is not None and text.startswith(bos)) else {}
        if not PRIVATE.search(text):
            return processed(self.processor, text, images, once)
        text, segments = self._cut(text, originals)
        output = processed(self.with_segments, text, images, once)
        first = text.startswith(chr(SEGMENT))
        return self._filled(output, [self._plain(part, first and i == 0) for i, part in enumerate(segments)])

    def _marked(self, chat: Sequence[dict[str, Any]], originals: list[str]) -> list[dict[str, Any]]:
        """Replace special names in a chat's texts by `MARK` characters, and append the names to `originals`."""

        def replace(match: re.Match[str]) -> str:
            originals.append(match[0])
            return chr(MARK + len(originals) - 1)

        def marked(text: str) -> str:
            if PRIVATE.search(text):
                raise ConfigurationError(f"a text with a special token has private-use characters, too: {text[:200]!r}")
            return self.pattern.sub(replace, text)

        return map_texts(chat, marked)

    def _cut(self, text: str, originals: Sequence[str]) -> tuple[str, list[str]]:
        """Replace the pieces between a prompt's special tokens that contain marks by `SEGMENT` characters.

        Returns:
            The shorter text, and the pieces with names in place of the marks.
        """
        segments: list[str] = []
        pieces = []
        end = 0
        for match in [*self.pattern.finditer(text), None]:
            piece = text[end : match.start() if match else len(text)]
            if PRIVATE.search(piece):
                segments.append(PRIVATE.sub(lambda found: originals[ord(found[0]) - MARK], piece))
                piece = chr(SEGMENT + len(segments) - 1)
            pieces += [piece, match[0]] if match else [piece]
            end = match.end() if match else end
        if len(segments) > MAX_SEGMENTS:
            raise ConfigurationError(f"a prompt has special tokens in more than {MAX_SEGMENTS} of its texts")
        return "".join(pieces), segments

    def _plain(self, text: str, first: bool) -> list[int]:
        """Return the ids of a text without special tokens. `first`: whether it is at the beginning of the prompt."""
        tokenizer = self.with_segments.tokenizer
        border = chr(SEGMENT)
        bordered = f"{text}{border}" if first else f"{border}{text}{border}"
        ids: list[int] = tokenizer(bordered, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        ids = ids[:-1] if first else ids[1:-1]
        special = {*tokenizer.convert_tokens_to_ids(self.names)} - {tokenizer.unk_token_id}
        if special.intersection(ids):
            name = next(name for name in self.names if tokenizer.convert_tokens_to_ids(name) in ids)
            raise ConfigurationError(
                f"the text {text[:200]!r} contains {name!r}, which {type(tokenizer).__name__} can only read as a "
                "special token; rename it"
            )
        return ids

    def _filled(self, output: Prompt, segments: Sequence[list[int]]) -> Prompt:
        """Replace the tokens of `SEGMENT` characters by the ids of the pieces that they stand for."""
        stand_ins = self.with_segments.tokenizer.convert_tokens_to_ids([chr(SEGMENT + i) for i in range(len(segments))])
        columns: list[torch.Tensor] = []
        ids: list[int] = []
        for position, token in enumerate(output["input_ids"][0].tolist()):
            new = segments[stand_ins.index(token)] if token in stand_ins else [token]
            columns.append(torch.full((len(new),), position))
            ids += new
        source = torch.cat(columns)
        keys = [key for key in TOKEN_KEYS if key in output]
        return output | {key: output[key][:, source] for key in keys} | {"input_ids": torch.tensor([ids])}


def whole_chat(processor: Any, chat: Sequence[dict[str, Any]]) -> tuple[str, int]:
    """Return a chat as text, and the index at which the last earlier answer ends, 0 if there is none.

    Earlier answers are inserted after rendering, because templates of reasoning models would remove their reasoning.

    Raises:
        ConfigurationError: the template leaves out earlier answers.
    """
    answers: list[str] = []

    def kept(turn: dict[str, Any]) -> dict[str, Any]:
        if turn["role"] != "assistant":
            return turn
        answers.append("".join(chat_texts([turn])))
        return turn | {"content": [{"type": "text", "text": chr(ANSWER + len(answers) - 1)}]}

    text, end = chat_text(processor, [*map(kept, chat)]), 0
    for i, answer in enumerate(answers):
        before, mark, after = text.partition(chr(ANSWER + i))
        if not mark or mark in after or len(before) < end:
            raise ConfigurationError(
                "model.policy.checkpoint: its chat template leaves out or repeats answers of earlier turns; expected "
                "data.examples=0"
            )
        text, end = f"{before}{answer}{after}", len(before) + len(answer)
    return text, end


def processed(processor: Any, text: str, images: Sequence[Any], options: dict[str, Any]) -> Prompt:
    """Return the output of a processor for a text with images, including the token types that Cosmos 3's omits.

    Raises:
        ConfigurationError: the processor refuses several images.
    """
    try:
        output = dict(processor(text=[text], images=[images], return_tensors="pt", **options))
    except (ValueError, TypeError, IndexError) as error:
        if len(images) < 2:
            raise
        raise ConfigurationError(
            f"model.policy.checkpoint: {type(processor).__name__} refuses a prompt with {len(images)} images: {error}"
        ) from error
    if "mm_token_type_ids" in processor.model_input_names and "mm_token_type_ids" not in output:
        output["mm_token_type_ids"] = (output["input_ids"] == processor.image_token_id).long()
    return output


@lru_cache(maxsize=4)
def plain_text(processor: Any) -> PlainText:
    """Return the PlainText of a processor, cached."""
    return PlainText(processor)


def chat_texts(chat: Sequence[dict[str, Any]]) -> list[str]:
    """Return all texts in a chat's messages."""
    contents = [turn["content"] for turn in chat]
    parts = [[{"type": "text", "text": given}] if isinstance(given, str) else given for given in contents]
    return [part["text"] for turn in parts for part in turn if part["type"] == "text"]


def map_texts(chat: Sequence[dict[str, Any]], change: Callable[[str], str]) -> list[dict[str, Any]]:
    """Return a chat's messages with `change` applied to all texts."""

    def part(item: dict[str, Any]) -> dict[str, Any]:
        return item | {"text": change(item["text"])} if item["type"] == "text" else item

    def content(given: Any) -> Any:
        return change(given) if isinstance(given, str) else [part(item) for item in given]

    return [turn | {"content": content(turn["content"])} for turn in chat]
