"""Generate the Python program of a model card, which asks the exported model about an image with transformers only."""

from __future__ import annotations

from collections.abc import Mapping

from vrft.boxes import FRAMES, Coordinates

FOUR_NUMBERS = r"\[\s*(\d+(?:\.\d+)?(?:\s*,\s*\d+(?:\.\d+)?){3})\s*\]"


def usage(template: str, system: str | None, coordinates: Coordinates | None, words: Mapping[str, str]) -> str:
    """Return a Python program of at most 15 lines that prints an answer when run in the exported folder.

    Args:
        template: text of the user turn.
        system: text of the system turn.
        coordinates: coordinates of boxes in answers, which the program converts to pixels; None: answers have no boxes.
        words: values of the template's fields other than the query and the size.
    """
    frame = FRAMES["unit" if coordinates == "unit" else "thousandths"]
    size = [f"width, height = {frame.width}, {frame.height}  # of the image in the coordinates of answers"]
    if coordinates == "pixels":
        size = [
            "height, width = (int(n) * processor.image_processor.patch_size "
            'for n in processor.image_processor(images=image)["image_grid_thw"][0][1:])  # of the resized image'
        ]
    system_turn = f"{ {'role': 'system', 'content': [{'type': 'text', 'text': system}]} }, " if system else ""
    return "\n".join(
        [
            *(["import re"] if coordinates else []),
            "from PIL import Image, ImageOps",
            "from transformers import AutoModelForImageTextToText, AutoProcessor",
            'model = AutoModelForImageTextToText.from_pretrained(".", dtype="auto")  # this folder',
            'processor = AutoProcessor.from_pretrained(".")',
            'image = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")',
            *size,
            f'question = {template!r}.format(query="cat", width=width, height=height, **{dict(words)!r})',
            'parts = [{"type": "image", "image": image}, {"type": "text", "text": question}]',
            'options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}',
            f"inputs = processor.apply_chat_template([{system_turn}{{'role': 'user', 'content': parts}}], **options)",
            'ids = model.generate(**inputs.to(model.dtype))[0, inputs["input_ids"].shape[1] :]',
            "print(answer := processor.decode(ids, skip_special_tokens=True))",
            *(
                [
                    f'for box in re.findall(r"{FOUR_NUMBERS}", answer):  # in pixels of the image',
                    "    print([float(v) * image.size[i % 2] / (width, height)[i % 2] "
                    'for i, v in enumerate(box.split(","))])',
                ]
                if coordinates
                else []
            ),
        ]
    )
