"""Limits for the size of images: honoured by each family's own image processor, or refused."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from PIL import Image
from transformers import AutoImageProcessor

from vrft.errors import ConfigurationError
from vrft.policy.image_size import (
    AREA_PROCESSORS,
    EDGE_TILE_PROCESSORS,
    FRAME_AREA_PROCESSORS,
    GRID_TILE_PROCESSORS,
    PATCH_TILE_PROCESSORS,
    ImageLimits,
    apply_fields,
    limited_fields,
    resized,
    write_fields,
)

pytestmark = pytest.mark.slow(seconds=0.2)

SIZES = [(600, 400), (50, 40), (900, 300), (200, 700)]
TILES = (*EDGE_TILE_PROCESSORS, *PATCH_TILE_PROCESSORS, *GRID_TILE_PROCESSORS)
QUICK: dict[str, Any] = {"do_rescale": False, "do_normalize": False, "resample": 0}
"""Settings of image processors that change pixels alone, not sizes."""
AREAS = (*AREA_PROCESSORS, *FRAME_AREA_PROCESSORS)


@cache
def names_of_transformers() -> list[str]:  # takes 0.2 s
    return dir(transformers)


def processor(name: str, **settings: Any) -> Any:
    if f"{name}Pil" not in names_of_transformers():
        pytest.skip(f"this version of transformers has no {name}")
    return getattr(transformers, f"{name}Pil")(**settings)


def limited(image_processor: Any, **limits: int) -> Any:
    apply_fields(image_processor, limited_fields(image_processor, ImageLimits(**limits)))
    return image_processor


def area(image_processor: Any, size: tuple[int, int]) -> int:
    """Return the area of an image after the processor has resized it."""
    _, rows, columns = image_processor(Image.new("RGB", size))["image_grid_thw"][0]
    side = image_processor.patch_size
    assert resized(image_processor, size) == (columns * side, rows * side)
    return int(rows * columns) * side**2


def tiling(name: str) -> dict[str, Any]:
    """Return settings with which an image processor cuts tiles."""
    return QUICK | ({"crop_to_patches": True} if name in PATCH_TILE_PROCESSORS else {})


def values(image_processor: Any, size: tuple[int, int]) -> int:
    """Return the number of values that an image becomes."""
    return int(np.asarray(image_processor(images=[Image.new("RGB", size)])["pixel_values"]).size)


@cache
def own_values(name: str, size: tuple[int, int]) -> int:
    """Return the number of values that an image becomes without limits."""
    return values(processor(name, **tiling(name)), size)


@pytest.mark.parametrize("name", AREAS)
def test_areas_are_honoured(name: str) -> None:
    found = limited(processor(name, **QUICK), min_pixels=60_000, max_pixels=120_000)
    side = found.patch_size * found.merge_size
    for size in SIZES:
        resized_area = area(found, size)
        assert 60_000 <= resized_area <= 120_000
        assert resized_area > 120_000 - 40 * side * side or size == (50, 40)  # as large as the limit permits


@pytest.mark.parametrize("name", TILES)
@pytest.mark.parametrize("most", [1, 2, 4, 7])
def test_tiles_are_honoured(name: str, most: int) -> None:
    settings = tiling(name)
    if name == "LlavaNextImageProcessor":
        settings |= {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
        if most == 1:
            with pytest.raises(ConfigurationError, match="max_tiles: expected at least 2, the tiles of the smallest"):
                limited(processor(name, **settings), max_tiles=most)
            return
    found = limited(processor(name, **settings), max_tiles=most)
    counts = []
    for size in SIZES:
        pixels = np.asarray(found(images=[Image.new("RGB", size)])["pixel_values"])
        tiles = pixels.reshape(-1, *pixels.shape[-3:]).shape[0]
        counts.append(max(1, tiles - 1))  # one tile has no overview, but for LLaVA's
    assert max(counts) <= most
    assert max(counts) > 1 or most < 4  # Idefics3 has squares alone


@pytest.mark.parametrize("name", TILES)
@pytest.mark.parametrize("most", [4, 99])
def test_a_limit_on_tiles_never_enlarges_an_image(name: str, most: int) -> None:
    """With a limit above its own, InternVL would cut a wide image into more tiles, and Idefics3 would shrink less."""
    size = (910, 70) if name in PATCH_TILE_PROCESSORS and most == 99 else (60, 40)
    own = own_values(name, size)
    with_limit = values(limited(processor(name, **tiling(name)), max_tiles=most), size)
    assert with_limit <= own
    assert with_limit == own or most == 4


@pytest.mark.parametrize(
    ("limits", "size"),
    [
        ({"max_pixels": 50_176}, {"shortest_edge": 50_176, "longest_edge": 50_176}),  # the checkpoint's least is larger
        ({"max_pixels": 100_352}, {"shortest_edge": 65_536, "longest_edge": 100_352}),
        ({"min_pixels": 1024}, {"shortest_edge": 1024, "longest_edge": 16_777_216}),
        ({"min_pixels": 20_000_000}, {"shortest_edge": 20_000_000, "longest_edge": 20_000_000}),
        ({}, {"shortest_edge": 65_536, "longest_edge": 16_777_216}),
    ],
    ids=str,
)
def test_a_limit_moves_the_checkpoints_other_limit_that_contradicts_it(
    limits: dict[str, int], size: dict[str, int]
) -> None:
    own = {"shortest_edge": 65_536, "longest_edge": 16_777_216}
    assert limited(processor("Qwen2VLImageProcessor", size=own), **limits).size == size


@pytest.mark.parametrize(
    ("name", "settings", "limits", "said"),
    [
        pytest.param(
            "Gemma3ImageProcessor",
            {"size": {"height": 896, "width": 896}},
            {"max_pixels": 401408},
            r"model\.policy\.max_pixels=401408: Gemma3ImageProcessor doesn't limit the area of an image "
            r"\(preprocessor_config\.json: size=\{'height': 896, 'width': 896\}\); expected .*max_pixels=null",
            id="fixed size",
        ),
        pytest.param("Gemma3ImageProcessor", {}, {"max_tiles": 2}, "max_tiles=2: .*max_tiles=null", id="no tiles"),
        pytest.param(
            "Idefics3ImageProcessor", {}, {"max_pixels": 401408}, "limits the number of tiles, .*max_tiles", id="edge"
        ),
        pytest.param("GotOcr2ImageProcessor", {}, {"min_pixels": 9}, r"min_pixels=9: .*\.max_tiles\)", id="patches"),
        pytest.param("LlavaOnevisionImageProcessor", {}, {"max_pixels": 9}, r"\.max_tiles\)", id="grid"),
        pytest.param("Qwen2VLImageProcessor", {}, {"max_tiles": 4}, r"limits the area, .*max_pixels\)", id="area"),
        pytest.param("PixtralImageProcessor", {}, {"max_pixels": 9}, r"size=\{'longest_edge': 1024\}", id="longest"),
        pytest.param("MllamaImageProcessor", {}, {"max_tiles": 2}, "max_image_tiles=4", id="tiles of the model too"),
        pytest.param("Gemma4ImageProcessor", {}, {"max_pixels": 9}, "max_soft_tokens=280", id="tokens"),
        pytest.param(
            "Qwen2VLImageProcessor", {}, {"max_pixels": 100}, "expected at least 784, the 28 x 28 pixels", id="tiny"
        ),
    ],
)
def test_a_limit_that_a_family_lacks_is_refused(
    name: str, settings: dict[str, Any], limits: dict[str, int], said: str
) -> None:
    with pytest.raises(ConfigurationError, match=said) as caught:
        limited(processor(name, **settings), **limits)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"max_pixels": 0}, "max_pixels: expected at least 1, got 0"),
        ({"max_tiles": -1}, "max_tiles: expected at least 1, got -1"),
        ({"min_pixels": 4000, "max_pixels": 3000}, "min_pixels: expected at most max_pixels=3000, got 4000"),
    ],
)
def test_impossible_limits_are_refused(limits: dict[str, int], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        ImageLimits(**limits)


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        pytest.param(
            "preprocessor_config.json",
            {"min_pixels": 3136, "max_pixels": 12845056},
            {"min_pixels": 3136, "max_pixels": 100352},
            id="old fields",
        ),
        pytest.param(
            "preprocessor_config.json", {"max_pixels": 12845056}, {"min_pixels": 3136, "max_pixels": 100352}, id="one"
        ),
        pytest.param(
            "preprocessor_config.json",
            {"size": {"longest_edge": 9}, "max_pixels": 12845056, "min_pixels": None},
            {"size": {"shortest_edge": 3136, "longest_edge": 100352}, "max_pixels": 100352, "min_pixels": None},
            id="both",
        ),
        pytest.param(
            "preprocessor_config.json", {}, {"size": {"shortest_edge": 3136, "longest_edge": 100352}}, id="neither"
        ),
        pytest.param(
            "processor_config.json",
            {"image_processor": {"size": {"longest_edge": 9}}, "x": 1},
            {"image_processor": {"size": {"shortest_edge": 3136, "longest_edge": 100352}}, "x": 1},
            id="nested",
        ),
        pytest.param("processor_config.json", {"x": 1}, {"x": 1}, id="no image processor"),
    ],
)
def test_limits_are_written_in_the_form_of_the_file(
    file: str, content: dict[str, Any], expected: dict[str, Any], tmp_path: Path
) -> None:
    kind = {"image_processor_type": "Qwen2VLImageProcessor"}
    (tmp_path / file).write_text(json.dumps(content))
    found = processor("Qwen2VLImageProcessor", size={"shortest_edge": 3136, "longest_edge": 12845056})
    fields = limited_fields(found, ImageLimits(max_pixels=100352))
    write_fields(tmp_path, fields)
    written = json.loads((tmp_path / file).read_text())
    assert written == expected
    if "x" not in expected:  # transformers reads the same limits
        (tmp_path / file).write_text(json.dumps(written | kind))
        assert AutoImageProcessor.from_pretrained(tmp_path).size == fields["size"]
