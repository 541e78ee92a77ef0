"""From samples to what the model reads. Picklable, so that it runs in data-loader workers."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from PIL import Image

from vrft.boxes import FRAMES, Coordinates, frame_of
from vrft.policy.prompts import Prompt
from vrft.tasks import Task
from vrft.types import Frame, PromptBatch, Sample

FAMILIES: dict[str, Coordinates] = {
    "qwen2_5_vl": "pixels",
    "llava": "unit",
    "llava_next": "unit",
    "llava_onevision": "unit",
}
"""What model types other than Qwen2-VL, Qwen3-VL and InternVL (thousandths) were taught to call a position."""

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


def load_processor(folder: str, trust_remote_code: bool = False, **kwargs: Any) -> Any:
    """`AutoProcessor.from_pretrained`, for images alone where torchvision is missing.

    transformers 5 has image processors without torchvision but no video processors, so AutoProcessor refuses every
    class with a video slot. The same class without that slot loads from the same files.
    """
    from transformers import AutoConfig, AutoProcessor
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
    from transformers.utils import is_torchvision_available

    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    cls = None if is_torchvision_available() else PROCESSOR_MAPPING.get(type(config), None)
    if cls is None or "video_processor" not in cls.get_attributes():
        return AutoProcessor.from_pretrained(folder, trust_remote_code=trust_remote_code, **kwargs)
    kept = [name for name in cls.get_attributes() if name != "video_processor"]

    class ImageOnly(cls):  # type: ignore[misc, valid-type]
        """Named as the class that it stands for, because names of parts are derived from it."""

        get_attributes = classmethod(lambda _: kept)
        video_processor = SimpleNamespace(num_frames=1, fps=1)  # SmolVLM's chat template asks, whatever the messages

    ImageOnly.__name__ = cls.__name__
    return ImageOnly.from_pretrained(folder, video_processor=None, trust_remote_code=trust_remote_code, **kwargs)


def copy_processor(source: str, folder: Path) -> None:
    """Copy a checkpoint's processor files as they are: saving an image-only processor would lose the video settings."""
    from transformers.utils import cached_file

    for name in PROCESSOR_FILES:
        found = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
        if found is not None:
            shutil.copyfile(found, folder / name)


@dataclass(frozen=True)
class Encoder:
    """Turns P samples into prompts, each by itself. `coordinates`: what the model's family calls a position."""

    processor: Any
    task: Task
    coordinates: Coordinates

    def __call__(self, samples: list[Sample]) -> PromptBatch:
        frames = [self.frame(sample.image) for sample in samples]
        return PromptBatch(samples, frames, [self.prompt(*pair) for pair in zip(samples, frames, strict=True)])

    def prompt(self, sample: Sample, frame: Frame) -> Prompt:
        """The processor's output for one sample."""
        chat = self.task.messages(sample, frame)
        text = self.processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        return dict(self.processor(text=[text], images=[[sample.image]], return_tensors="pt"))

    def frame(self, image: Image.Image) -> Frame:
        """0..1000 along both sides, 0..1 with three decimals, or pixels of the image as the processor resizes it."""
        if self.coordinates != "pixels":
            return FRAMES[self.coordinates]
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

        settings = self.processor.image_processor
        height, width = smart_resize(
            image.height,
            image.width,
            factor=settings.patch_size * settings.merge_size,
            min_pixels=settings.size["shortest_edge"],
            max_pixels=settings.size["longest_edge"],
        )
        return frame_of("pixels", (width, height))


class MicroBatch(NamedTuple):
    """Numbers of prompts, and of the rows that belong to them, for one forward and backward."""

    prompts: list[int]
    rows: list[int]


def micro_batches(
    prompts: Sequence[int], rows: Sequence[int], which: Sequence[int], max_tokens: int
) -> list[MicroBatch]:
    """Groups with at most `max_tokens` tokens together.

    A group above it is split, at the cost of its prompt for each part; a row is never split.

    Args:
        prompts: tokens of each prompt, P of them.
        rows: tokens of each completion, N of them.
        which: numbers of the prompts to take.
        max_tokens: of prompts and completions.
    """
    group = len(rows) // len(prompts)
    batches: list[MicroBatch] = []
    room = 0  # in the last batch
    for p in which:
        mine = list(range(p * group, (p + 1) * group))
        size = prompts[p] + sum(rows[n] for n in mine)
        if size > max_tokens:
            batches += [MicroBatch([p], part) for part in _split(mine, rows, max_tokens - prompts[p])]
            room = 0
        elif size > room:
            batches.append(MicroBatch([p], mine))
            room = max_tokens - size
        else:
            batches[-1].prompts.append(p)
            batches[-1].rows.extend(mine)
            room -= size
    return batches


def _split(mine: list[int], rows: Sequence[int], max_tokens: int) -> list[list[int]]:
    parts: list[list[int]] = []
    room = 0
    for n in mine:
        if rows[n] > room:
            parts.append([])
            room = max_tokens
        parts[-1].append(n)
        room -= rows[n]
    return parts
