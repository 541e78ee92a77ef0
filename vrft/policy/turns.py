"""Check prompts with several images or few-shot examples before weights are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from vrft.errors import ConfigurationError
from vrft.policy.plain_text import processed, whole_chat

SIDE = 64
"""Width and height of the blank test images."""


def check_turns(processor: Any, checkpoint: str, images_per_turn: Sequence[int]) -> None:
    """Encode a chat with blank images and the structure of the data's prompts.

    Args:
        processor: the checkpoint's processor.
        checkpoint: the checkpoint, for messages.
        images_per_turn: number of images of each example, then of the question.

    Raises:
        ConfigurationError: the processor or its chat template can't encode the chat, though it can encode a question
            about one image.
    """
    try:
        encode(processor, images_per_turn)
    except ConfigurationError as error:
        if error.__cause__ is None:  # the template's own error, whose message is complete
            raise
        encode(processor, [1])
        total, shown = sum(images_per_turn), len(images_per_turn) - 1
        raise ConfigurationError(
            f"model.policy.checkpoint: {checkpoint}: {type(processor).__name__} takes a prompt with one image, and not "
            f"one with {total}, as the data has with data.examples={shown}: {' '.join(str(error.__cause__).split())}"
        ) from error


def encode(processor: Any, images_per_turn: Sequence[int]) -> None:
    """Encode a chat of questions about blank images, with answers to all but the last."""
    chat: list[dict[str, Any]] = []
    for count in images_per_turn:
        if chat:
            chat.append({"role": "assistant", "content": [{"type": "text", "text": "There."}]})
        places = [{"type": "image"} for _ in range(count)]
        chat.append({"role": "user", "content": [*places, {"type": "text", "text": "Where is it?"}]})
    images = [Image.new("RGB", (SIDE, SIDE)) for _ in range(sum(images_per_turn))]
    processed(processor, whole_chat(processor, chat)[0], images, {})
