"""Translate limits on the size of images to the fields of each family's image processor."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vrft.errors import ConfigurationError

AREA_PROCESSORS = (
    "CohereCompassImageProcessor",
    "Cosmos3EdgeImageProcessor",
    "Ernie4_5_VLMoeImageProcessor",
    "HunYuanVLImageProcessor",
    "HYV4VLImageProcessor",
    "PaddleOCRVLImageProcessor",
    "Qwen2VLImageProcessor",
    "VideoLlama3ImageProcessor",
)
"""Image processors whose `size` contains areas in pixels, named `shortest_edge` and `longest_edge`."""

FRAME_AREA_PROCESSORS = ("Glm4vImageProcessor", "Glm46VImageProcessor", "GlmgaImageProcessor")
"""Image processors whose `size` contains such areas summed over the `temporal_patch_size` frames of an image."""

EDGE_TILE_PROCESSORS = ("Idefics3ImageProcessor", "SmolVLMImageProcessor")
"""Image processors that resize the longer side to `size.longest_edge`, then cut tiles of `max_image_size`."""

PATCH_TILE_PROCESSORS = ("GotOcr2ImageProcessor", "Ovis2ImageProcessor")
"""Image processors that cut an image into at most `max_patches` tiles."""

GRID_TILE_PROCESSORS = ("LlavaNextImageProcessor", "LlavaOnevisionImageProcessor")
"""Image processors that choose a grid of tiles from `image_grid_pinpoints`."""

SIZE_FIELDS = {
    "size",
    "crop_size",
    "max_image_size",
    "max_image_tiles",
    "max_image_tokens",
    "max_num_tiles",
    "max_patches",
    "max_slice_nums",
    "max_soft_tokens",
}
"""Fields that determine the size of images in other image processors, for error messages."""

AREA_EDGES = {"shortest_edge": "min_pixels", "longest_edge": "max_pixels"}


@dataclass(frozen=True)
class ImageLimits:
    """Limits on the size of images.

    Attributes:
        min_pixels: minimum area; smaller images are enlarged. None: the checkpoint's limit.
        max_pixels: maximum area; larger images are shrunk. None: the checkpoint's limit.
        max_tiles: maximum number of tiles that an image is cut into, not counting an overview. None: the checkpoint's
            limit.

    Raises:
        ConfigurationError: a limit is not positive, or `min_pixels` is larger than `max_pixels`.
    """

    min_pixels: int | None = None
    max_pixels: int | None = None
    max_tiles: int | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and value < 1:
                raise ConfigurationError(f"model.policy.{name}: expected at least 1, got {value}")
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise ConfigurationError(
                f"model.policy.min_pixels: expected at most max_pixels={self.max_pixels}, got {self.min_pixels}"
            )

    @property
    def pixels(self) -> dict[str, int]:
        """The configured limits of the area, by name."""
        return {name: getattr(self, name) for name in AREA_EDGES.values() if getattr(self, name) is not None}


def is_a(image_processor: Any, names: tuple[str, ...]) -> bool:
    """Return whether an image processor is one of these classes or a subclass, with any backend (`…Pil`, `…Fast`)."""
    own = {cls.__name__.removesuffix("Pil").removesuffix("Fast") for cls in type(image_processor).__mro__}
    return not own.isdisjoint(names)


def limited_fields(image_processor: Any, limits: ImageLimits) -> dict[str, Any]:
    """Return the fields of an image processor that implement the limits, by name.

    Raises:
        ConfigurationError: the image processor does not support such a limit, or a limit this low.
    """
    fields: dict[str, Any] = {}
    if limits.pixels:
        fields["size"] = area_limits(image_processor, limits)
    if limits.max_tiles is not None:
        fields |= tile_limits(image_processor, limits.max_tiles)
    return fields


def area_limits(image_processor: Any, limits: ImageLimits) -> dict[str, int]:
    """Return `size` of an image processor with limits on the area of resized images.

    A limit of the checkpoint that contradicts a given limit is set to the given one.
    """
    frames = image_processor.temporal_patch_size if is_a(image_processor, FRAME_AREA_PROCESSORS) else 1
    if frames == 1 and not is_a(image_processor, AREA_PROCESSORS):
        (name, value), *_ = limits.pixels.items()
        raise ConfigurationError(
            f"model.policy.{name}={value}: {kind(image_processor)} doesn't limit the area of an image "
            f"({size_fields(image_processor)}); expected model.policy.{name}=null"
        )
    side = image_processor.patch_size * image_processor.merge_size
    for name, value in limits.pixels.items():
        if value < side**2:
            raise ConfigurationError(
                f"model.policy.{name}: expected at least {side**2}, the {side} x {side} pixels of one image token, "
                f"got {value}"
            )
    own = image_processor.size
    least, most = own["shortest_edge"], own["longest_edge"]
    if limits.min_pixels is not None:
        least = limits.min_pixels * frames
        most = max(most, least)
    if limits.max_pixels is not None:
        most = limits.max_pixels * frames
        least = min(least, most)
    return {"shortest_edge": least, "longest_edge": most}


def tile_limits(image_processor: Any, max_tiles: int) -> dict[str, Any]:
    """Return the fields of an image processor that limit tiles to `max_tiles`, or to its current limit if smaller."""
    if is_a(image_processor, EDGE_TILE_PROCESSORS):
        side = image_processor.max_image_size["longest_edge"]
        return {"size": {"longest_edge": min(image_processor.size["longest_edge"], math.isqrt(max_tiles) * side)}}
    if is_a(image_processor, PATCH_TILE_PROCESSORS):
        most = min(image_processor.max_patches, max_tiles)
        return {"max_patches": most, "min_patches": min(image_processor.min_patches, most)}
    if is_a(image_processor, GRID_TILE_PROCESSORS):
        tiles = {tuple(grid): grid_tiles(image_processor, grid) for grid in image_processor.image_grid_pinpoints}
        kept = [list(grid) for grid, count in tiles.items() if count <= max_tiles]
        if not kept:
            raise ConfigurationError(
                f"model.policy.max_tiles: expected at least {min(tiles.values())}, the tiles of the smallest grid in "
                f"the checkpoint's image_grid_pinpoints, got {max_tiles}"
            )
        return {"image_grid_pinpoints": kept}
    raise ConfigurationError(
        f"model.policy.max_tiles={max_tiles}: {kind(image_processor)} doesn't limit the number of tiles "
        f"({size_fields(image_processor)}); expected model.policy.max_tiles=null"
    )


def grid_tiles(image_processor: Any, grid: list[int]) -> int:
    """Return the number of tiles in a grid, given its height and width in pixels."""
    size = image_processor.crop_size or image_processor.size
    side = size.get("height") or size["shortest_edge"]
    return int((grid[0] // side) * (grid[1] // side))


def resized(image_processor: Any, size: tuple[int, int]) -> tuple[int, int]:
    """Return the size (width, height) to which an image processor resizes an image of `size` (width, height).

    Raises:
        ConfigurationError: the image processor does not resize images by area.
    """
    from transformers.models.glm4v.image_processing_pil_glm4v import smart_resize as resize_frames
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    width, height = size
    if is_a(image_processor, FRAME_AREA_PROCESSORS):
        frames = image_processor.temporal_patch_size
        resize = partial(resize_frames, frames, temporal_factor=frames)
    elif is_a(image_processor, AREA_PROCESSORS):
        resize = smart_resize
    else:
        raise ConfigurationError(
            f"model.policy.coordinates: {kind(image_processor)} doesn't resize an image as a whole, so boxes can't be "
            "pixels of the resized image; expected thousandths or unit"
        )
    height, width = resize(
        height,
        width,
        factor=image_processor.patch_size * image_processor.merge_size,
        min_pixels=image_processor.size["shortest_edge"],
        max_pixels=image_processor.size["longest_edge"],
    )
    return width, height


def kind(image_processor: Any) -> str:
    """Return the name of an image processor's class without its backend."""
    return type(image_processor).__name__.removesuffix("Pil").removesuffix("Fast")


def size_fields(image_processor: Any) -> str:
    """Describe how an image processor determines the size of images, for an error message."""
    if is_a(image_processor, (*AREA_PROCESSORS, *FRAME_AREA_PROCESSORS)):
        return "it limits the area, model.policy.max_pixels"
    if is_a(image_processor, (*EDGE_TILE_PROCESSORS, *PATCH_TILE_PROCESSORS, *GRID_TILE_PROCESSORS)):
        return "it limits the number of tiles, model.policy.max_tiles"
    held = {name: value for name, value in image_processor.to_dict().items() if name in SIZE_FIELDS and value}
    given = ", ".join(f"{name}={value}" for name, value in held.items())
    return f"preprocessor_config.json: {given or 'no size'}"


def smaller_images(image_processor: Any) -> list[str]:
    """Return the setting that makes images smaller, for advice, or an empty list if there is none."""
    if is_a(image_processor, (*AREA_PROCESSORS, *FRAME_AREA_PROCESSORS)):
        return ["model.policy.max_pixels=200704"]
    if is_a(image_processor, (*EDGE_TILE_PROCESSORS, *PATCH_TILE_PROCESSORS, *GRID_TILE_PROCESSORS)):
        return ["model.policy.max_tiles=4"]
    return []


def apply_fields(image_processor: Any, fields: dict[str, Any]) -> None:
    """Set the fields of an image processor that `limited_fields` returned."""
    for name, value in fields.items():
        if name == "size":
            for edge, length in value.items():
                image_processor.size[edge] = length
        else:
            setattr(image_processor, name, value)


def config_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that a model's config repeats: the grids from which LLaVA models derive features."""
    return {name: value for name, value in fields.items() if name == "image_grid_pinpoints"}


def apply_to_config(config: Any, fields: dict[str, Any]) -> None:
    """Set the fields in a model's config."""
    for name, value in config_fields(fields).items():
        setattr(config, name, value)


def write_fields(folder: Path, fields: dict[str, Any]) -> None:
    """Write fields of the image processor to the processor's files, in the form that each file already uses."""
    for path in (folder / "preprocessor_config.json", folder / "processor_config.json"):
        if not fields or not path.exists():
            continue
        content = json.loads(path.read_text(encoding="utf-8"))
        settings = content if path.name.startswith("pre") else content.get("image_processor")
        if not isinstance(settings, dict):
            continue
        old = [name for name in AREA_EDGES.values() if settings.get(name) is not None]
        areas = {AREA_EDGES[edge]: area for edge, area in fields.get("size", {}).items() if old}
        if old and "size" not in settings:
            settings |= areas
        else:
            settings |= fields | {name: areas[name] for name in old if name in areas}  # old names override `size`
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
