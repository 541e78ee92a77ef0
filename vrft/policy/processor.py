"""From samples to what the model reads. Picklable, so that it runs in data-loader workers."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from torch import Tensor

from vrft.tasks import Task
from vrft.types import Frame, PromptBatch, Sample

RELATIVE = Frame(1000, 1000)

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


def load_processor(folder: str, **kwargs: Any) -> Any:
    """`AutoProcessor.from_pretrained`, for images alone where torchvision is missing.

    transformers 5 has image processors without torchvision but no video processors, so AutoProcessor refuses every
    class with a video slot. The same class without that slot loads from the same files.
    """
    from transformers import AutoConfig, AutoProcessor
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
    from transformers.utils import is_torchvision_available

    cls = None if is_torchvision_available() else PROCESSOR_MAPPING.get(type(AutoConfig.from_pretrained(folder)), None)
    if cls is None or "video_processor" not in cls.get_attributes():
        return AutoProcessor.from_pretrained(folder, **kwargs)
    kept = [name for name in cls.get_attributes() if name != "video_processor"]
    image_only: Any = type(cls.__name__, (cls,), {"get_attributes": classmethod(lambda _: kept)})
    return image_only.from_pretrained(folder, **kwargs)


def copy_processor(source: str, folder: Path) -> None:
    """Copy a checkpoint's processor files as they are: saving an image-only processor would lose the video settings."""
    from transformers.utils import cached_file

    for name in PROCESSOR_FILES:
        found = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
        if found is not None:
            shutil.copyfile(found, folder / name)


@dataclass(frozen=True)
class Encoder:
    """Turns P samples into a left-padded batch of prompts. `coordinates`: what the model's family calls a position."""

    processor: Any
    task: Task
    coordinates: Literal["relative", "absolute"]

    def __call__(self, samples: list[Sample]) -> PromptBatch:
        frames = [self.frame(sample.image) for sample in samples]
        chats = [self.task.messages(sample, frame) for sample, frame in zip(samples, frames, strict=True)]
        texts = self.processor.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)
        images = [[sample.image] for sample in samples]
        inputs = self.processor(text=texts, images=images, padding=True, padding_side="left", return_tensors="pt")
        return PromptBatch(samples, frames, dict(inputs))

    def frame(self, image: Image.Image) -> Frame:
        """0..1000 along both sides, or the pixels of the image as the processor resizes it (Qwen2.5-VL)."""
        if self.coordinates == "relative":
            return RELATIVE
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

        settings = self.processor.image_processor
        height, width = smart_resize(
            image.height,
            image.width,
            factor=settings.patch_size * settings.merge_size,
            min_pixels=settings.size["shortest_edge"],
            max_pixels=settings.size["longest_edge"],
        )
        return Frame(width, height)


def select_prompts(inputs: dict[str, Tensor], prompts: slice) -> dict[str, Tensor]:
    """The prompts of a slice, with their images. One image per prompt; Qwen's patches of all images lie end to end."""
    if "image_grid_thw" not in inputs:
        return {key: value[prompts] for key, value in inputs.items()}
    patches = inputs["image_grid_thw"].prod(1).cumsum(0).tolist()
    start = patches[prompts.start - 1] if prompts.start else 0
    return {
        key: value[start : patches[prompts.stop - 1]] if key == "pixel_values" else value[prompts]
        for key, value in inputs.items()
    }


def micro_batches(inputs: dict[str, Tensor], mask: Tensor, max_tokens: int) -> Iterator[slice]:
    """Consecutive prompts whose groups hold at most `max_tokens` tokens, padding included; a group is never split.

    Args:
        inputs: the processor's output for P prompts.
        mask: 1 at real completion tokens (N, T).
        max_tokens: of prompts and completions; a group above it goes alone.
    """
    prompts, length = inputs["input_ids"].shape
    group = len(mask) // prompts
    longest = mask.sum(1).view(prompts, group).amax(1).tolist()  # (P,)
    start = 0
    for stop in range(1, prompts + 1):
        if stop == prompts or (stop + 1 - start) * (length + group * max(longest[start : stop + 1])) > max_tokens:
            yield slice(start, stop)
            start = stop
