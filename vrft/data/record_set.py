"""The dataset of records."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

import torch
from PIL import Image

from vrft.data.augmentation import augment
from vrft.data.depths import TooBright
from vrft.data.examples import ExamplePool, image_keys
from vrft.data.images import BadImage, read_image
from vrft.data.loaders import EpochSet
from vrft.data.record import Record
from vrft.errors import ConfigurationError
from vrft.types import Sample


class RecordSet(EpochSet):
    """A dataset that reads the image of each record on access.

    If a training image can no longer be read, it is replaced by the next readable sample, which lists the failures in
    `metadata["replaced"]`. An unreadable held-out image is replaced by a blank one, so that its question still counts.
    """

    def __init__(
        self,
        records: Sequence[Record],
        *,
        training: bool,
        augmentation: Sequence[torch.nn.Module] = (),
        seed: int = 0,
        image_bits: int | None = None,
        examples: ExamplePool | None = None,
    ) -> None:
        self.records, self.training, self.image_bits = records, training, image_bits
        self.augmentation, self.seed = augmentation, seed
        self.pool = examples
        self.choices: dict[tuple[str, int], tuple[set[Hashable], tuple[Sample, ...]]] = {}
        """The examples that were read last, with the keys of their images, by choice."""
        self.batches: dict[int, tuple[str, list[int]]] = {}
        """Name and samples of the batch of each sample, in the epoch of `batches_of`."""
        self.batches_of: int | None = None

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        replaced: list[str] = []
        keys, examples = self._examples(index)
        for offset in range(len(self.records) if self.training else 1):
            position = (index + offset) % len(self.records)
            record = self.records[position]
            if offset and image_keys([record]) & keys:
                continue
            try:
                images = self._read(record)
            except BadImage as error:
                replaced.append(f"{record.location}: {error}")
                continue
            sample = self._sample(position, record, images, replaced)
            augmented = augment(sample, self.augmentation, (self.seed, self.epoch, position))
            return replace(augmented, examples=examples)
        if self.training:
            raise ConfigurationError(f"data: no training image can be read any more; the last error: {replaced[-1]}")
        record = self.records[index]
        blank = (Image.new("RGB", record.size),) * record.num_images
        return replace(self._sample(index, record, blank, replaced), examples=examples)

    def _examples(self, index: int) -> tuple[set[Hashable], tuple[Sample, ...]]:
        """Return the examples that the prompt of a sample shows, and the keys of their images.

        All prompts of a batch on all ranks have the same examples, and so have all held-out prompts.
        """
        if self.pool is None:
            return set(), ()
        name, asked = self._batch(index)
        key = (name, asked[0])
        if key not in self.choices:
            chosen = self.pool.choose(name, image_keys([self.records[i] for i in asked]))
            self.choices = {key: (image_keys(chosen), tuple(map(self._example, chosen)))}
        return self.choices[key]

    def _batch(self, index: int) -> tuple[str, Sequence[int]]:
        """Return the name of the batch that a sample belongs to, and the indices of all samples in it."""
        if not self.training:
            return "the evaluation", range(len(self.records))
        if self.sampler is None:  # e.g. `doctor` reads samples without training
            return "no batch", [index]
        if self.batches_of != self.epoch:
            self.batches_of, self.batches = self.epoch, {}
            for number, batch in enumerate(self.sampler.global_batches(), 1):
                self.batches |= dict.fromkeys(batch, (f"batch {number} of epoch {self.epoch}", batch))
        return self.batches[index]

    def _example(self, record: Record) -> Sample:
        try:
            return self._sample(-1, record, self._read(record), [])
        except BadImage as error:
            raise ConfigurationError(f"data.examples: {record.location}: {error}") from error

    def _read(self, record: Record) -> tuple[Image.Image, ...]:
        """Read a record's images, all upright or all as stored, depending on the boxes of one of them."""
        upright = record.convention != "stored"
        images = []
        for image in record.images:
            size = record.size if image is record.image else None
            size = size if record.tile is None else record.tile.image_size
            try:
                found = read_image(image, size, upright=upright, bits=self.image_bits)
                images.append(found if record.tile is None else found.crop(record.tile.area))
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
    """Return the file of a sample's image for display, or None if the samples have no files.

    Bytes of a name that are not UTF-8 are escaped.
    """
    if not isinstance(samples, RecordSet):
        return None
    return str(samples.records[index].image).encode(errors="backslashreplace").decode()
