"""Encode samples with a checkpoint's processor, and pack prompts and completions into micro-batches."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from vrft.boxes import Coordinates, frame_of, with_decimals
from vrft.errors import ConfigurationError
from vrft.policy.examples import ExampleCache
from vrft.policy.image_size import resized
from vrft.policy.plain_text import chat_texts, plain_text, whole_chat
from vrft.policy.prompts import Prompt
from vrft.tasks import Task
from vrft.types import Frame, PromptBatch, Sample
from vrft.utils.own_code import noted, question_note
from vrft.utils.processors import IMAGE_PROCESSOR_FILES, current_names

PROCESSOR_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
    "chat_template.json",
    "chat_template.jinja",
)


def copy_processor(source: str, folder: Path) -> None:
    """Copy a checkpoint's processor files, with the class names of transformers 5.

    Saving an image-only processor instead would lose the video settings.
    """
    from transformers.utils import cached_file

    for name in PROCESSOR_FILES:
        found = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
        if found is not None:
            shutil.copyfile(found, folder / name)
    for path in (folder / name for name in IMAGE_PROCESSOR_FILES):
        if path.exists():
            path.write_text(current_names(path.read_text(encoding="utf-8")), encoding="utf-8")
    write_template(folder)


def write_template(folder: Path) -> None:
    """Write chat_template.jinja if only tokenizer_config.json, which processors don't read, has the template."""
    if any((folder / name).exists() for name in ("chat_template.jinja", "chat_template.json")):
        return
    path = folder / "tokenizer_config.json"
    template = json.loads(path.read_text(encoding="utf-8")).get("chat_template") if path.exists() else None
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    if template:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


@dataclass(frozen=True)
class Encoder:
    """Converts samples to prompts, each a batch of one. Picklable for data-loader workers.

    `coordinates` are the coordinates of boxes in prompts and answers, with `decimals` decimals; None: the default of
    the frame.
    """

    processor: Any
    task: Task
    coordinates: Coordinates
    decimals: int | None = None
    cache: ExampleCache = field(default_factory=ExampleCache, init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.coordinates == "unit" and self.decimals == 0:
            raise ConfigurationError("model.policy.coordinate_decimals: unit coordinates need at least 1, got 0")

    def __call__(self, samples: list[Sample]) -> PromptBatch:
        frames = [self.frame(sample.image) for sample in samples]
        return PromptBatch(samples, frames, [self.prompt(*pair) for pair in zip(samples, frames, strict=True)])

    def prompt(self, sample: Sample, frame: Frame) -> Prompt:
        """Return the processor's output for one sample."""
        chat = self.chat(sample, frame)
        images = shown_images(sample)
        plain = plain_text(self.processor)
        rendered = plain.render(chat)
        count = len(images) - sample.num_images
        return self.cache.prompt(plain, rendered, images, count) if count else plain.encode(rendered, images)

    def chat(self, sample: Sample, frame: Frame) -> list[dict[str, Any]]:
        """Return the messages of a sample: system turn, few-shot examples with answers, question."""
        turns = self.turns(sample, frame)
        if not sample.examples:
            return turns
        lead = [turn for turn in turns if turn["role"] == "system"]
        shown = []
        for example in sample.examples:
            own = self.frame(example.image)
            shown += [turn for turn in self.turns(example, own) if turn["role"] != "system"]
            with noted(partial(question_note, example.image_id, example.query)):
                answer = self.task.target_text(example, own)
            shown.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        return [*lead, *shown, *turns[len(lead) :]]

    def turns(self, sample: Sample, frame: Frame) -> list[dict[str, Any]]:
        """Return the task's messages. Raise ConfigurationError unless they have a placeholder for each image."""
        with noted(partial(question_note, sample.image_id, sample.query)):
            chat = self.task.messages(sample, frame)
        places = sum(part["type"] == "image" for turn in chat for part in turn["content"] if isinstance(part, dict))
        if places != sample.num_images:
            raise ConfigurationError(
                f"task: {type(self.task).__name__}.messages has {places} places for images; sample {sample.index} "
                f"(image {sample.image_id}) has {sample.num_images}"
            )
        return chat

    def texts(self, sample: Sample, frame: Frame) -> tuple[str, str]:
        """Return, for display, the text of the question and the text of the whole chat with image placeholders."""
        question = "\n\n".join(chat_texts(self.turns(sample, frame)))
        return question, whole_chat(self.processor, self.chat(sample, frame))[0]

    def frame(self, image: Image.Image) -> Frame:
        """Return the coordinate system of an image: thousandths, unit, or pixels of the resized image."""
        return self.frame_of_size(image.size)

    def frame_of_size(self, size: tuple[int, int]) -> Frame:
        """Return the coordinate system of an image of `size` (width, height)."""
        if self.coordinates == "pixels":
            size = resized(self.processor.image_processor, size)
        return with_decimals(frame_of(self.coordinates, size), self.decimals)


def shown_images(sample: Sample) -> list[Image.Image]:
    """Return the images of a prompt in order: images of the few-shot examples, then of the question."""
    return [image for shown in (*sample.examples, sample) for image in shown.images]


class MicroBatch(NamedTuple):
    """Indices of the prompts and the rows of one forward and backward."""

    prompts: list[int]
    rows: list[int]


def micro_batches(
    prompt_lengths: Sequence[int], row_lengths: Sequence[int], selected: Sequence[int], max_tokens: int
) -> list[MicroBatch]:
    """Pack prompts with their rows, in order, into micro-batches of at most `max_tokens` tokens.

    If the rows of a prompt exceed the limit, they are split, and the prompt is repeated in each part. A row is never
    split, so a single row may exceed the limit.

    Args:
        prompt_lengths: number of tokens of each of P prompts.
        row_lengths: number of tokens of each of N completions.
        selected: indices of the prompts to pack.
        max_tokens: maximum number of prompt and completion tokens in a micro-batch.
    """
    group_size = len(row_lengths) // len(prompt_lengths)
    batches: list[MicroBatch] = []
    room = 0  # number of tokens that still fit into the last micro-batch
    for p in selected:
        rows = list(range(p * group_size, (p + 1) * group_size))
        size = prompt_lengths[p] + sum(row_lengths[n] for n in rows)
        if size > max_tokens:
            parts = _split_rows(rows, row_lengths, max_tokens - prompt_lengths[p])
            batches += [MicroBatch([p], part) for part in parts]
            room = 0
        elif size > room:
            batches.append(MicroBatch([p], rows))
            room = max_tokens - size
        else:
            batches[-1].prompts.append(p)
            batches[-1].rows.extend(rows)
            room -= size
    return batches


def _split_rows(rows: list[int], row_lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    parts: list[list[int]] = []
    room = 0
    for n in rows:
        if not parts or row_lengths[n] > room:
            parts.append([])
            room = max_tokens
        parts[-1].append(n)
        room -= row_lengths[n]
    return parts
