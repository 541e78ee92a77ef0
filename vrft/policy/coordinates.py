"""Choose the coordinates of boxes that a model family was trained on."""

from __future__ import annotations

from typing import Any

from vrft.boxes import Coordinates
from vrft.policy.image_size import resized
from vrft.tasks import Task
from vrft.utils import notices

FAMILY_COORDINATES: dict[str, Coordinates] = {
    **dict.fromkeys(("qwen2_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"), "thousandths"),
    **dict.fromkeys(("qwen3_omni_moe_thinker", "internvl", "glm4v", "glm4v_moe", "glm46v"), "thousandths"),
    **dict.fromkeys(("qwen2_5_vl", "qwen2_5_omni_thinker"), "pixels"),
    **dict.fromkeys(("llava", "llava_next", "llava_next_video", "llava_onevision", "vipllava"), "unit"),
}
"""Coordinates by model type. Other types were trained on none, on special tokens, or on undocumented ones."""


def choose_coordinates(chosen: Coordinates | None, model_type: str, processor: Any, task: Task) -> Coordinates:
    """Return the coordinates of boxes in prompts and answers.

    If the coordinates of a family are unknown, use thousandths, with a warning if the task asks for boxes.

    Args:
        chosen: the setting; None: by model type.
        model_type: type of the model.
        processor: processor of the checkpoint.
        task: task that phrases the prompts.

    Raises:
        ConfigurationError: coordinates are pixels of the resized image, but the processor does not resize the image as
            a whole.
    """
    coordinates = chosen or FAMILY_COORDINATES.get(model_type)
    if coordinates == "pixels":
        resized(processor.image_processor, (100, 100))
    if coordinates is None and "{width}" in task.prompt + task.template:
        notices.warn(
            f"model.policy.coordinates: vrft does not know in which coordinates a {model_type} was taught to give "
            "boxes, and asks for thousandths; set it to thousandths, unit or pixels"
        )
    return coordinates or "thousandths"
