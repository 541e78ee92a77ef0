"""Load the processors of Hugging Face checkpoints without torchvision, and with class names of transformers 5."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

IMAGE_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")

RENAMED_IMAGE_PROCESSORS = {
    "Qwen2_5_VLImageProcessor": "Qwen2VLImageProcessor",
    "Qwen2_5_VLImageProcessorFast": "Qwen2VLImageProcessorFast",
}
"""Class names in the first Qwen2.5-VL checkpoints and their fine-tunes, and the names in transformers 5."""


def load_processor(folder: str, trust_remote_code: bool = False, **kwargs: Any) -> Any:
    """Load a processor like `AutoProcessor.from_pretrained`, but without torchvision, for images only.

    Video processors of transformers 5 need torchvision. Without it, AutoProcessor refuses every class that has one, but
    the same class without its video processor can be loaded from the same files.
    """
    from transformers import AutoConfig, AutoProcessor
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
    from transformers.utils import is_torchvision_available

    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    cls = PROCESSOR_MAPPING.get(type(config), None)
    auto = AutoProcessor
    if cls is not None and has_renamed_image_processor(folder):
        auto, kwargs["config"] = cls, config  # makes transformers use the image processor of the model's type
    if cls is None or is_torchvision_available() or "video_processor" not in cls.get_attributes():
        return with_template(auto.from_pretrained(folder, trust_remote_code=trust_remote_code, **kwargs))
    image_only = image_only_class(cls)
    return with_template(
        image_only.from_pretrained(folder, video_processor=None, trust_remote_code=trust_remote_code, **kwargs)
    )


@cache
def image_only_class(cls: Any) -> Any:
    """Return a processor class without video. It keeps the name, from which transformers derives other names."""
    kept = [name for name in cls.get_attributes() if name != "video_processor"]

    class ImageOnly(cls):
        get_attributes = classmethod(lambda _: kept)
        video_processor = SimpleNamespace(num_frames=1, fps=1)  # SmolVLM's chat template reads it for any message

        def __reduce__(self) -> tuple[Any, ...]:  # spawned workers, as on macOS and Windows, receive a pickle
            return restored, (cls, vars(self))

    ImageOnly.__name__ = cls.__name__
    return ImageOnly


def restored(cls: Any, state: dict[str, Any]) -> Any:
    """Unpickle an object of `image_only_class(cls)`."""
    processor = object.__new__(image_only_class(cls))
    vars(processor).update(state)
    return processor


def with_template(processor: Any) -> Any:
    """Give a processor without a chat template that of its tokenizer, from tokenizer_config.json."""
    if processor.chat_template is None:
        processor.chat_template = processor.tokenizer.chat_template
    return processor


def has_renamed_image_processor(checkpoint: str) -> bool:
    """Return whether a checkpoint's image processor has one of the old names in `RENAMED_IMAGE_PROCESSORS`."""
    from transformers.utils import cached_file

    for name in IMAGE_PROCESSOR_FILES:
        found = cached_file(checkpoint, name, _raise_exceptions_for_missing_entries=False)
        if found is not None and current_names(text := Path(found).read_text(encoding="utf-8")) != text:
            return True
    return False


def current_names(text: str) -> str:
    """Replace the old names of `RENAMED_IMAGE_PROCESSORS` in the text of a processor's file."""
    for old, new in RENAMED_IMAGE_PROCESSORS.items():
        text = text.replace(f'"{old}"', f'"{new}"')
    return text
