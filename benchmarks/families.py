"""Test which model types vrft supports, with a tiny random model of every image-text-to-text type of transformers.

    python benchmarks/families.py                     all types; prints the table of docs/families.md
    python benchmarks/families.py qwen2_vl gemma3     some types
    python benchmarks/families.py --write docs/families.md

Each type is built in a forked process limited to 300 s and 8 GB. Default configurations are used except for the sizes
of layers, and images are processed by the type's image processor.
"""

from __future__ import annotations

import argparse
import inspect
import multiprocessing
import re
import resource
import sys
import warnings
from collections.abc import Iterable, Iterator
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from family_settings import IMAGE_PROCESSORS, IMAGE_SETTINGS, OVERRIDES, SIZES
from PIL import Image
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.models.auto.image_processing_auto import get_image_processor_class_from_name as image_processor_class
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.utils import is_torchvision_available

from vrft.policy import image_size
from vrft.policy.coordinates import FAMILY_COORDINATES
from vrft.policy.head import logits_of
from vrft.policy.prompts import TOKEN_TYPE_KEYS, Prompt, encode_images
from vrft.policy.repeated import naive_log_probs, repeated_hidden_states
from vrft.policy.shared_prefix import group_hidden_states, share_prefixes
from vrft.policy.support import unsupported

SECONDS, BYTES = 300, 8 * 2**30
MAX_PARAMETERS = 400_000_000
TOLERANCE = 1e-4
MADE = "Made on"


class Row(NamedTuple):
    """The findings about a model type."""

    kind: str
    prompt: str
    coordinates: str
    size: str
    needs: str = ""


def shrink(settings: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration's settings with small layers."""
    layers = next((settings[key] for key in ("num_hidden_layers", "depth", "num_layers") if settings.get(key)), None)
    small: dict[str, Any] = {}
    for key, value in settings.items():
        if key == "per_layer_config":
            small[key] = None
        elif isinstance(value, dict):
            small[key] = shrink(value)
        elif key in SIZES and isinstance(value, type(SIZES[key])) and not isinstance(value, bool):
            small[key] = SIZES[key]
        elif isinstance(value, list) and layers and len(value) == layers:
            kinds = [*dict.fromkeys(map(str, value))]
            first = [next(item for item in value if str(item) == kind) for kind in kinds]
            small[key] = (first + value[:2])[:2]
        else:
            small[key] = value
    return small


def build(kind: str) -> Any:
    """Return a tiny random model of a type."""
    config_class, auto = CONFIG_MAPPING[kind], transformers.AutoModelForImageTextToText
    default = config_class()
    small = shrink(default.to_dict())
    source = Path(inspect.getfile(auto._model_mapping[config_class])).read_text()
    if "mrope_section" in source or kind in ("glm46v", "glmga"):
        add_sections(small)
    config = config_class.from_dict(merged(small, OVERRIDES.get(kind, {})))
    image = getattr(config, "image_token_id", None)
    if isinstance(image, int):
        text = config.get_text_config()
        text.vocab_size = max(text.vocab_size, image + 8)
    if lacks := unsupported(config):
        raise Unsupported(lacks)
    with torch.device("meta"):
        model = auto.from_config(config, attn_implementation="sdpa")
    if (count := sum(parameter.numel() for parameter in model.parameters())) > MAX_PARAMETERS:
        raise ValueError(f"{count / 1e6:.0f} M parameters")
    torch.manual_seed(0)
    model = auto.from_config(config, attn_implementation="sdpa", dtype=torch.float32).float().eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2:
            inputs = parameter.shape[-1] if "expert" in name else parameter[0].numel()
            torch.nn.init.normal_(parameter, 0, inputs**-0.5)
    return model


def add_sections(settings: dict[str, Any]) -> None:
    """Divide the rotary positions of small heads among three axes."""
    for key, value in settings.items():
        if isinstance(value, dict):
            add_sections(value)
        if key in ("rope_parameters", "rope_scaling") and {"rope_type", "rope_theta"} & {*(value or ())}:
            value["mrope_section"] = [2, 1, 1]


def merged(settings: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Merge changes recursively into settings."""
    result = dict(settings)
    for key, value in changes.items():
        result[key] = merged(result.get(key) or {}, value) if isinstance(value, dict) else value
    return result


class Unsupported(Exception):
    """Raised if a model lacks something that vrft needs."""


def image_processor(kind: str, config: Any = None) -> Any:
    """Return the image processor of a type, with default settings except for the sizes that a model expects."""
    names = IMAGE_PROCESSOR_MAPPING_NAMES[IMAGE_PROCESSORS.get(kind, kind)]
    name = names.get("torchvision") if is_torchvision_available() else names.get("pil")
    processor = image_processor_class(name or names.get("pil"))(**IMAGE_SETTINGS.get(kind, {}))
    vision = getattr(config, "vision_config", None)
    for own, theirs in (("patch_size", "patch_size"), ("merge_size", "spatial_merge_size")):
        value = getattr(vision, theirs, None)
        if isinstance(value, int) and isinstance(getattr(processor, own, None), int):
            setattr(processor, own, value)
    side = getattr(vision, "image_size", None)
    side = side[0] if isinstance(side, (list, tuple)) else side
    if side is None:
        return processor
    for own in ("size", "crop_size", "max_image_size"):
        held = getattr(processor, own, None)
        value = (
            set() if held is None or isinstance(held, int) else {key for key, length in dict(held).items() if length}
        )
        tiled = own == "size" and getattr(processor, "max_image_size", None)
        if isinstance(held, int):
            setattr(processor, own, side)
        elif value and (value <= {"height", "width", "shortest_edge"} or (value == {"longest_edge"} and not tiled)):
            setattr(processor, own, type(held)(**dict.fromkeys(value, side)))
    return processor


def prompt_of(model: Any, processor: Any) -> Prompt:
    """Return a prompt with an image, i.e. with as many image tokens as the tower returns features."""
    image = Image.effect_noise((90, 60), 60).convert("RGB")
    images = dict(processor(images=[image], return_tensors="pt"))
    taken = {*inspect.signature(model.base_model.get_image_features).parameters}
    pixels = {key: value for key, value in images.items() if key in taken}
    pixels = {
        key: value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for key, value in pixels.items()
    }
    features = encode_images(model, pixels).pooled
    features = features if isinstance(features, torch.Tensor) else torch.cat([*features])
    count = features.reshape(-1, features.shape[-1]).shape[0]
    start = getattr(model.config, "vision_start_token_id", None) or 31
    ids = torch.tensor([[30, start, *[model.config.image_token_id] * count, 32, 33, 34]])
    types = (ids == model.config.image_token_id).long()
    accepted = {*inspect.signature(model.forward).parameters}
    tokens = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    tokens |= {key: types for key in TOKEN_TYPE_KEYS if key in accepted}
    return tokens | pixels


@torch.no_grad()
def shared_prompt(model: Any, prompt: Prompt) -> str:
    """Return whether log-probabilities with a shared or with a repeated prompt are exact."""
    lengths = [5, 3]
    ids = torch.randint(40, 90, (2, 5), generator=torch.Generator().manual_seed(1))
    rows = [row[:length] for row, length in zip(ids, lengths, strict=True)]
    none = torch.empty(0, dtype=torch.long)
    own, _ = naive_log_probs(model, prompt, rows, none, torch.float32, warnings.catch_warnings())

    def gap(hidden: torch.Tensor) -> float:
        log_p = logits_of(model)(hidden).float().log_softmax(-1)
        return float((log_p.gather(-1, torch.cat(rows)[:, None])[:, 0] - own).abs().max())

    repeated = gap(repeated_hidden_states(model, [prompt], ids, lengths))
    shared = gap(group_hidden_states(model, [prompt], ids, lengths)) if share_prefixes(model) else float("nan")
    if shared < TOLERANCE:
        return "exact"
    if repeated < TOLERANCE:
        return "repeated"
    return f"refused: log-probabilities differ by {min(repeated, shared):.2g}"


def limit_on_size(kind: str) -> str:
    """Return how `model.policy` limits the size of images for a type."""
    try:
        processor = image_processor(kind)
    except (ImportError, KeyError, TypeError, ValueError):
        return "?"
    if image_size.is_a(processor, (*image_size.AREA_PROCESSORS, *image_size.FRAME_AREA_PROCESSORS)):
        return "area"
    tiled = (image_size.EDGE_TILE_PROCESSORS, image_size.PATCH_TILE_PROCESSORS, image_size.GRID_TILE_PROCESSORS)
    if image_size.is_a(processor, sum(tiled, ())):
        return "tiles"
    size = processor.size or {}
    return "fixed" if {"height", "width"} <= {key for key, value in dict(size).items() if value} else "none"


def row(kind: str) -> Row:
    """Build a type and describe it."""
    backends = IMAGE_PROCESSOR_MAPPING_NAMES.get(IMAGE_PROCESSORS.get(kind, kind), {})
    needs = "torchvision" if backends and not backends.get("pil") else ""
    if hasattr(getattr(CONFIG_MAPPING[kind](), "vision_config", None), "architecture"):
        needs = f"{needs}, timm".removeprefix(", ")
    coordinates, size = FAMILY_COORDINATES.get(kind, "unknown"), limit_on_size(kind)
    stage = "its default configuration can't be made small"
    try:
        model = build(kind)
        stage = "its forward fails at this size"
        prompt = shared_prompt(model, prompt_of(model, image_processor(kind, model.config)))
    except Unsupported as error:
        prompt = f"refused: {error}"
    except ImportError as error:
        package = re.search(r"requires the (\w+) library", str(error))
        prompt = f"not built: {package[1] if package else error} is not installed"
    except Exception as error:  # any exception is the result of the type
        print(f"{kind}: {type(error).__name__}: {error}", file=sys.stderr)
        prompt = f"not built: {stage}"
    return Row(kind, prompt, coordinates, size, needs)


def bounded_row(kind: str) -> Row:
    """Return a type's row from a forked process with limits of time and memory."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
        sender.send(row(kind))

    process = context.Process(target=work)
    process.start()
    sender.close()
    try:
        found = receiver.recv() if receiver.poll(SECONDS) else None
    except EOFError:
        found = None
    process.kill()
    process.join()
    return found or Row(kind, f"not built: no end within {SECONDS} s and {BYTES >> 30} GB", "?", "?")


def table(rows: Iterable[Row]) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    yield "| model type | prompt of a group | boxes | image size | needs |"
    yield "|--|--|--|--|--|"
    for found in rows:
        yield f"| `{found.kind}` | {found.prompt} | {found.coordinates} | {found.size} | {found.needs} |"


def replace_table(page: Path, lines: list[str]) -> None:
    """Replace a page's table, and the line above it with the date and the version of transformers."""
    text = page.read_text()
    start = text.index(MADE)
    end = text.index("|\n\n", start) + 2
    made = f"{MADE} {date.today().isoformat()} with transformers {transformers.__version__}:"
    page.write_text(text[:start] + "\n".join([made, "", *lines]) + "\n" + text[end:])


def main() -> None:
    """Print the table, or write it to a page."""
    parser = argparse.ArgumentParser(description="Build a tiny model of every image-text-to-text type.")
    parser.add_argument("kinds", nargs="*", help="model types; default: all")
    parser.add_argument("--write", type=Path, help="page whose table is replaced")
    arguments = parser.parse_args()
    rows = []
    for kind in arguments.kinds or sorted(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES):
        rows.append(bounded_row(kind))
        print([*table(rows)][-1], flush=True)
    if arguments.write:
        replace_table(arguments.write, [*table(rows)])


if __name__ == "__main__":
    main()
