"""Images in requests to vLLM servers."""

from __future__ import annotations

import base64
import io

from PIL import Image

from vrft.rollout.vllm.completions import chat
from vrft.tasks import ClassificationTask
from vrft.types import Frame, Sample


def test_a_request_has_all_images_in_order() -> None:
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    images = tuple(Image.new("RGB", (8, 8), colour) for colour in colours)
    task = ClassificationTask("What changed?", system="Be brief.")
    first = task.messages(Sample(0, images[:1], 0, "", "red"), Frame(1000, 1000))
    answer = {"role": "assistant", "content": [{"type": "text", "text": "red"}]}
    asked = task.messages(Sample(1, images[1:], 1, "", "red"), Frame(1000, 1000))
    turns = chat([*first, answer, *asked[1:]], images)
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "user"]
    parts = [part for turn in turns for part in turn["content"]]
    assert [part["type"] for part in parts] == [
        "text",
        "image_url",
        "text",
        "text",
        "image_url",
        "image_url",
        "text",
    ]
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    found = [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) for url in urls]
    assert [image.getpixel((0, 0)) for image in found] == colours
