"""Answer questions about single images from Python."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Literal

import torch
from PIL import Image

from vrft.boxes import Coordinates
from vrft.data.images import BadImage, check_header, read_image
from vrft.errors import ConfigurationError
from vrft.policy import Policy
from vrft.rollout.base import Sampling, SamplingKey
from vrft.rollout.transformers import TransformersEngine
from vrft.tasks import Task
from vrft.types import Answer, Sample

MAX_COMPLETION_LENGTH = 256
"""Default for checkpoints without `max_new_tokens` in their generation config. Exported folders have it."""


class Predictor:
    """Answers questions about images with a checkpoint and a task, like `python -m vrft predict`.

    Decoding is greedy. The task must have the same class and template as in training.
    """

    def __init__(
        self,
        checkpoint: str,
        task: Task,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        device: str | torch.device = "cpu",
        coordinates: Coordinates | None = None,
        coordinate_decimals: int | None = None,
        image_bits: int | None = None,
    ) -> None:
        """Load the checkpoint.

        Args:
            checkpoint: an exported folder, a model on the Hugging Face Hub, or a built-in policy.
            task: phrases the question and parses the answer.
            dtype: compute dtype.
            device: device of the model.
            coordinates: coordinate system of the boxes in answers, as in `Policy`; default: by the model's family.
            coordinate_decimals: decimals of these coordinates, as in `Policy`; default: 3 for `unit`, else 0.
            image_bits: bits per colour of the camera, for files of more than 8 bits, as in `data.image_bits`; default:
                guess from each file's brightest pixel, with a warning.

        Raises:
            ConfigurationError: the checkpoint can't be loaded, or `image_bits` is not from 9 to 32.
        """
        if image_bits is not None and not 8 < image_bits <= 32:
            raise ConfigurationError(f"image_bits: expected a number from 9 to 32, got {image_bits}")
        self.task, self.image_bits = task, image_bits
        self.policy = Policy(checkpoint, dtype=dtype, coordinates=coordinates, coordinate_decimals=coordinate_decimals)
        self.policy.load(keep_reference=False)
        self.policy.requires_grad_(False).to(device)
        self.encoder, self.engine = self.policy.encoder(task), TransformersEngine()
        limit = self.policy.base.generation_config.max_new_tokens
        self.max_completion_length: int = limit or MAX_COMPLETION_LENGTH

    def __call__(self, image: str | Path | Image.Image, query: str = "") -> Answer:
        """Return the answer to a question about an image.

        The answer's `value` is None if it can't be read. Boxes are in pixels of the upright image.

        Args:
            image: a file, or an RGB image.
            query: value of {query} in the task's template: a category, an instruction or a question.

        Raises:
            BadImage: the file can't be read, or the image is not RGB.
            TooBright: a pixel of the file needs more than `image_bits` bits.
        """
        picture = self._checked(image) if isinstance(image, Image.Image) else self._read(Path(image))
        batch = self.encoder([Sample(0, (picture,), 0, query, "")])
        device = self.policy.banned_ids.device
        for prompt in batch.inputs:
            prompt.update({name: value.to(device) for name, value in prompt.items()})
        rollout = self.engine.generate(
            self.policy,
            self.policy.prepare(batch),
            num_generations=1,
            max_completion_length=self.max_completion_length,
            sampling=Sampling(greedy=True),
            key=SamplingKey(seed=0, rollout=0),
            on_token=lambda *_: None,
        )
        return self.task.parse(rollout.texts[0], batch.samples[0], batch.frames[0])

    def _read(self, path: Path) -> Image.Image:
        if self.image_bits is None and check_header(path).deep:
            warnings.warn(
                f"{path} has more than 8 bits per colour. Its depth is guessed from its brightest pixel; "
                "Predictor(image_bits=12) states it",
                stacklevel=3,
            )
        return read_image(path, bits=self.image_bits)

    def _checked(self, image: Image.Image) -> Image.Image:
        if image.mode != "RGB":
            raise BadImage(f"expected an image in RGB, got mode {image.mode}; files may have any that Pillow reads")
        return image
