"""Image folders: one subfolder per class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from torch.utils.data import Dataset

from vrft.data.datamodule import VisionData
from vrft.data.few_shot import choose_shots, record_shots
from vrft.errors import ConfigurationError
from vrft.types import Sample

IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".webp"}


class LabelledImages(Dataset[Sample]):
    """Samples of a list of (file, class name)."""

    def __init__(self, files: Sequence[tuple[Path, str]]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        file, name = self.files[index]
        image = Image.open(file).convert("RGB")
        return Sample(index, image, index, "", name, {"file": str(file)})


class ImageFolderData(VisionData):
    """`root/train/<class name>/*.jpg` to train on, `root/val/<class name>/*.jpg` held out."""

    def __init__(
        self,
        root: str,
        shots: int | None = None,
        batch_size: int = 8,
        eval_batch_size: int = 32,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        """Names the folder; it is read when training starts.

        Args:
            root: folder with `train` and `val`, each with one subfolder per class.
            shots: images per class to train on, chosen by `seed`; default: all.
            batch_size: prompts per rank and training step.
            eval_batch_size: prompts decoded at once in evaluation.
            num_workers: processes that read and encode images; 0: the main one.
            seed: of the order and of the choice of shots.
        """
        super().__init__(batch_size, eval_batch_size, num_workers, seed)
        self.root, self.shots = Path(root), shots
        self.check_paths()

    def check_paths(self) -> None:
        """Raise ConfigurationError if a folder is missing."""
        for part in ("train", "val"):
            if not (self.root / part).is_dir():
                raise ConfigurationError(
                    f"data.root: no such folder: {self.root / part}; expected {self.root}/{part}/<class name>/*.jpg"
                )

    def setup(self, stage: str) -> None:
        if stage == "fit":
            files = list_images(self.root / "train")
            if self.shots is not None:
                files = choose_shots(files, lambda item: item[1], self.shots, self.seed)
                assert self.trainer is not None
                record_shots(
                    self.trainer.default_root_dir,
                    [(name, file.relative_to(self.root).as_posix()) for file, name in files],
                )
            self._train = LabelledImages(files)
        self._val = LabelledImages(list_images(self.root / "val"))

    def train_set(self) -> LabelledImages:
        return self._train

    def val_set(self) -> LabelledImages:
        return self._val


def list_images(folder: Path) -> list[tuple[Path, str]]:
    """(file, class name) of every image below `folder`, sorted.

    Raises:
        ConfigurationError: there is none, or one can't be read.
    """
    files = [
        (file, file.parent.name)
        for file in sorted(folder.glob("*/*"))
        if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")
    ]
    if not files:
        raise ConfigurationError(f"{folder}: no images; expected {folder}/<class name>/*.jpg")
    for file, _ in files:
        try:
            Image.open(file).close()
        except (UnidentifiedImageError, OSError) as error:
            raise ConfigurationError(f"{file}: not a readable image") from error
    return files
