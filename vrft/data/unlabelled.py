"""Images without annotations, for prediction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from vrft.data.bad_records import MAX_LISTED, BadRecords, write_lines
from vrft.data.datamodule import module_of
from vrft.data.folders import find_images
from vrft.data.ground_truth import file_ids
from vrft.data.image_checks import check_images
from vrft.data.image_folders import ImageFolders
from vrft.data.record import Record, Split
from vrft.data.record_checks import check_queries, warn_of_first_frames, warn_of_guessed_depths
from vrft.data.record_set import RecordSet
from vrft.data.records import RecordData
from vrft.errors import ConfigurationError
from vrft.run_dir import RunDir
from vrft.types import Id
from vrft.utils.display import counted


class UnlabelledData(RecordData):
    """Asks every query about every image. Unreadable images are reported and left out."""

    def __init__(
        self, images: list[str], queries: list[str] | None = None, per_image: bool = False, **kwargs: Any
    ) -> None:
        """Set the images, which are read when prediction starts.

        Args:
            images: image files, and folders that are searched recursively.
            queries: categories, instructions or questions; none for tasks whose prompt has no query.
            per_image: ask for all categories in one prompt per image.
            kwargs: see `RecordData`.
        """
        super().__init__(**kwargs)
        self.images, self.categories = [Path(image) for image in images], list(dict.fromkeys(queries or ()))
        self.queries = [", ".join(self.categories)] if per_image else self.categories or [""]
        for path in self.images:
            if not path.exists():
                raise ConfigurationError(f"images: no such file or folder: {path}")

    def image_folders(self, split: Split) -> ImageFolders:
        return ImageFolders("images", tuple(self.images))

    def records(self, split: Split, bad_records: BadRecords) -> list[Record]:
        """Return a record for each pair of image and query, grouped by image. Ids are names, as in `BoxData`."""
        counts, folders = bad_records.passed_over, self.required_folders(split)
        files = dict.fromkeys(
            file for path in self.images for file in (find_images(path, counts, folders) if path.is_dir() else [path])
        )
        return [
            Record((file,), "images", key, query, ())
            for key, file in zip(file_ids([*files]), files, strict=True)
            for query in self.queries
        ]

    def setup(self, stage: str) -> None:
        if stage != "predict":
            raise ConfigurationError("data: UnlabelledData has no annotations; it is for predict")
        assert self.trainer is not None
        if "{query}" in module_of(self.trainer).task.template and not any(self.queries):
            raise ConfigurationError("query: the task's template needs one; expected e.g. --query cat")
        bad_records = BadRecords()
        asked = check_queries(self.records("val", bad_records), module_of(self.trainer).task, bad_records)
        found = check_images(asked, bad_records, self.required_folders("val"))
        if self.image_bits is None:
            warn_of_guessed_depths(found)
        warn_of_first_frames(found)
        problems = [*bad_records.missing, *bad_records.found]
        for problem in problems[:MAX_LISTED]:
            rank_zero_warn(f"left out: {problem}")
        if len(problems) > MAX_LISTED:
            rank_zero_warn(f"{len(problems)} images are left out, all listed in predictions_left_out.txt")
        if problems:
            write_lines(RunDir.of(self.trainer).predictions_left_out, problems)
        elif self.trainer.is_global_zero:
            RunDir.of(self.trainer).predictions_left_out.unlink(missing_ok=True)  # from an earlier command
        bad_records.say([f"questions about {counted(len({record.image for record in found}), 'image')}"])
        if not found:
            raise ConfigurationError(f"images: no readable image in {self.images[0]}")
        self._val = RecordSet(found, training=False, image_bits=self.image_bits)

    def category_ids(self) -> dict[str, Id]:
        return {name: number for number, name in enumerate(self.categories, 1)}
