"""Digits: scikit-learn's 8 x 8 scans, and rendered digits to pretrain the built-in policy."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch.utils.data import Dataset

from vrft.data.datamodule import VisionData
from vrft.data.formats.image_folder import ImageFolderData
from vrft.errors import ConfigurationError
from vrft.types import Sample
from vrft.utils.bounds import Seed

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
UPSCALING = 7  # 8 x 8 scan -> 56 x 56 pixels
NUM_HELD_OUT = 600


class DigitsData(ImageFolderData):
    """Writes scikit-learn's scans to an image folder if it does not exist, then reads that folder."""

    def __init__(
        self, root: str = "data/digits", shots: int | None = 16, eval_batch_size: int = 200, **kwargs: Any
    ) -> None:
        """Hold out 600 scans, the same for every seed, and train on the other 1,197 or on shots of them.

        Args:
            root: folder to write and read.
            shots: scans per digit to train on, chosen by `seed`.
            eval_batch_size: prompts decoded together in evaluation.
            kwargs: see `ImageFolderData`.
        """
        super().__init__(root, shots=shots, eval_batch_size=eval_batch_size, **kwargs)

    def check_paths(self) -> None:
        """Skip the check of the base class, because missing files are generated."""

    def prepare_data(self) -> None:
        if (self.root / "train").exists():
            return
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise ConfigurationError("data: DigitsData needs `pip install 'scikit-learn>=1.4'`") from error

        scans = load_digits()
        order = np.random.default_rng(0).permutation(len(scans.images))
        # train last, because its presence marks completion
        for split, chosen in (("val", order[:NUM_HELD_OUT]), ("train", order[NUM_HELD_OUT:])):
            partial = self.root / f"{split}.partial"
            for i in chosen:
                folder = partial / DIGIT_NAMES[scans.target[i]]
                folder.mkdir(parents=True, exist_ok=True)
                enlarge(scans.images[i]).save(folder / f"{i:04d}.png")
            partial.replace(self.root / split)


def enlarge(scan: NDArray[np.float64]) -> Image.Image:
    """Convert a scan (8, 8) with values 0..16 to an image of 56 x 56 pixels around mid grey."""
    grey = (128 + scan / 16 * 120).clip(0, 255).astype(np.uint8)
    return Image.fromarray(np.kron(grey, np.ones((UPSCALING, UPSCALING), np.uint8))).convert("RGB")


class RenderedDigits(Dataset[Sample]):
    """Digits in common fonts, rotated, stretched and blurred to resemble scans. Sample i depends on (seed, i) alone."""

    def __init__(self, size: int, seed: int) -> None:
        import matplotlib

        folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
        names = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSerif", "STIXGeneral")
        self.fonts = [
            ImageFont.truetype(folder / f"{name}.ttf", points) for name in names for points in (26, 29, 32, 34)
        ]
        self.size, self.seed = size, seed

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        rng = random.Random(f"digit/{self.seed}/{index}")
        digit = rng.randrange(10)
        return Sample(index, (enlarge(self._render(rng, str(digit))),), index, "", DIGIT_NAMES[digit])

    def _render(self, rng: random.Random, text: str) -> NDArray[np.float64]:
        font = rng.choice(self.fonts)
        canvas = Image.new("L", (40, 40))
        pen = ImageDraw.Draw(canvas)
        pen.text((20, 20), text, fill=255, font=font, anchor="mm")
        canvas = canvas.rotate(rng.uniform(-12, 12), Image.Resampling.BILINEAR)
        box = canvas.getbbox()
        assert box is not None
        box = (
            box[0] - rng.randint(-1, 2),
            box[1] - rng.randint(-1, 2),
            box[2] + rng.randint(-1, 2),
            box[3] + rng.randint(-1, 2),
        )
        width = rng.choice([4, 5, 6]) if rng.random() < 0.7 else 8
        scan = Image.new("L", (8, 8))
        scan.paste(canvas.crop(box).resize((width, 8), Image.Resampling.BOX), ((8 - width) // 2, 0))
        noise = np.random.default_rng(rng.getrandbits(32)).normal(0, 0.8, (8, 8))
        values: NDArray[np.float64] = np.asarray(scan) / 255 * 16 * rng.uniform(0.8, 1.1) + noise
        return values.clip(0, 16)


class RenderedDigitData(VisionData):
    """A stream of rendered digits."""

    shuffle = False

    def __init__(self, steps: int, batch_size: int = 64, eval_batch_size: int = 200, seed: Seed = 0) -> None:
        """Draw `steps` training batches and 200 held-out digits."""
        super().__init__(batch_size, eval_batch_size, num_workers=0, seed=seed)
        self.steps = steps

    def train_set(self) -> RenderedDigits:
        return RenderedDigits(self.steps * self.batch_size, self.seed)

    def val_set(self) -> RenderedDigits:
        return RenderedDigits(200, self.seed + 1_000_000)
