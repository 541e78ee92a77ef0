"""The dataset of records."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image

from vrft.data.augmentation import augment
from vrft.data.depths import TooBright
from vrft.data.images import BadImage, read_image
from vrft.data.loaders import AugmentedSet
from vrft.data.record import Record
from vrft.errors import ConfigurationError
from vrft.types import Sample


class RecordSet(AugmentedSet):
    """A dataset that reads the image of each record on access.

    If a training image can no longer be read, the next readable sample takes its place and lists the failures in
    `metadata["replaced"]`. An unreadable held-out image becomes a blank one, so that its question still counts.
    """

    def __init__(
        self,
        records: Sequence[Record],
        *,
        training: bool,
        augmentation: Sequence[torch.nn.Module] = (),
        seed: int = 0,
        image_bits: int | None = None,
    ) -> None:
        self.records, self.training, self.image_bits = records, training, image_bits
        self.augmentation, self.seed = augmentation, seed

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        replaced = []
        for offset in range(len(self.records) if self.training else 1):
            position = (index + offset) % len(self.records)
            record = self.records[position]
            try:
                images = self._read(record)
            except BadImage as error:
                replaced.append(f"{record.location}: {error}")
                continue
            sample = self._sample(position, record, images, replaced)
            return augment(sample, self.augmentation, (self.seed, self.epoch, position))
        if self.training:
            raise ConfigurationError(f"data: no training image can be read any more; the last error: {replaced[-1]}")
        record = self.records[index]
        return self._sample(index, record, (Image.new("RGB", record.size),) * record.num_images, replaced)

    def _read(self, record: Record) -> tuple[Image.Image, ...]:
        """Read a record's images. All are upright or all as stored, as the boxes of one of them tell."""
        upright = record.convention != "stored"
        images = []
        for image in record.images:
            size = record.size if image is record.image else None
            try:
                images.append(read_image(image, size, upright=upright, bits=self.image_bits))
            except TooBright as error:
                raise ConfigurationError(f"data.image_bits: {record.location}: {image}: {error}") from error
        return tuple(images)

    @staticmethod
    def _sample(index: int, record: Record, images: tuple[Image.Image, ...], replaced: list[str]) -> Sample:
        metadata = record.metadata | ({"replaced": replaced} if replaced else {})
        return Sample(
            index, images, record.image_id, record.query, record.target, metadata, image_index=record.image_index
        )


def image_file(samples: object, index: int) -> str | None:
    """Return the file of a sample's image, to show to people; None if the samples are no records.

    Bytes of a name that are no UTF-8 are escaped.
    """
    if not isinstance(samples, RecordSet):
        return None
    return str(samples.records[index].image).encode(errors="backslashreplace").decode()
