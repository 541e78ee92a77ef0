"""Save thumbnails of images, each once, in the run's folder."""

from __future__ import annotations

import hashlib
import io
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from PIL import Image

from vrft.types import Sample

MAX_SIDE = 448
"""Maximum longer side of a thumbnail in pixels."""

FULL_CHROMA_MAX_SIDE = 128
"""Maximum longer side, in pixels, of thumbnails without chroma subsampling."""


def save_thumbnails(sample: Sample, folder: Path) -> dict[str, Any]:
    """Save thumbnails of a sample's images, and return the name of the one that the boxes belong to.

    If there are several, also return the names of all and the index of this one, since equal images have the same name.
    Names are None if writing failed, with a warning.
    """
    names = [save_thumbnail(image, folder) for image in sample.images]
    several = {"images": names, "place": sample.place} if len(names) > 1 else {}
    return {"image": names[sample.place], **several}


def save_thumbnail(image: Image.Image, folder: Path) -> str | None:
    """Write a JPEG thumbnail named by its content, and return the name, or None, with a warning, if writing fails."""
    small = image.convert("RGB")
    small.thumbnail((MAX_SIDE, MAX_SIDE))
    buffer = io.BytesIO()
    quality, subsampling = (95, 0) if max(small.size) <= FULL_CHROMA_MAX_SIDE else (75, 2)
    small.save(buffer, "JPEG", quality=quality, subsampling=subsampling)
    content = buffer.getvalue()
    path = folder / f"{hashlib.sha256(content).hexdigest()[:16]}.jpg"
    if path.exists():
        return path.name
    partial = path.with_suffix(".partial")
    try:
        path.parent.mkdir(exist_ok=True)
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        rank_zero_warn(f"{folder.name}: images are missing: {error.strerror}")
        return None
    return path.name
