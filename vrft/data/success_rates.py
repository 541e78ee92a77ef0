"""The file that `python -m vrft filter` writes, and the selection of training samples by `data.keep`.

The first line states what was asked and the rule for keeping samples. Each further line has the scores of one sample.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from vrft.data.files import read_bytes, require_file
from vrft.data.image_folders import ImageFolders
from vrft.data.images import ImageSource
from vrft.data.record import Record, category
from vrft.errors import ConfigurationError
from vrft.types import Id
from vrft.utils import notices
from vrft.utils.display import counted
from vrft.utils.files import atomic_write

MAX_NAMED = 5
"""Maximum number of categories that a message names; the rest are only counted."""


class Rule(msgspec.Struct, frozen=True):
    """Keep a sample if `lowest` <= its success rate <= `highest`. A success is a score of at least `success`.

    A sample without a rate is kept: the reward does not apply to it, or its image can't be read.
    """

    reward: str
    success: float = 0.5
    lowest: float = 0.1
    highest: float = 0.9

    def check(self) -> None:
        """Raise ConfigurationError for invalid bounds."""
        if not 0 <= self.lowest <= self.highest <= 1:
            raise ConfigurationError(
                f"lowest, highest: expected 0 <= lowest <= highest <= 1, got {self.lowest} and {self.highest}"
            )

    def rate(self, scores: Sequence[float | None]) -> float | None:
        """Return the share of successes among the answers that the reward applies to, or None if there are none."""
        known = [score for score in scores if score is not None]
        return sum(score >= self.success for score in known) / len(known) if known else None

    def keeps(self, rate: float | None) -> bool:
        """Return whether a sample with this success rate is kept."""
        return rate is None or self.lowest <= rate <= self.highest

    def left_out(self, rates: Sequence[float | None]) -> str:
        """Describe how many samples are left out because their rates are too low, and how many are too high."""
        below = sum(rate is not None and rate < self.lowest for rate in rates)
        above = sum(rate is not None and rate > self.highest for rate in rates)
        return f"{below} below {self.lowest:g} and {above} above {self.highest:g}"


class Header(msgspec.Struct):
    """The first line. `asked`: weights, task, sampling and reward; `samples`: number of lines that follow."""

    asked: dict[str, Any]
    rule: Rule
    samples: int


class Entry(msgspec.Struct):
    """The line of a sample. `scores`: scores of the sampled answers, None where the reward does not apply."""

    id: str
    sample: int
    image_id: Id
    query: str
    file: str
    scores: list[float | None]
    rate: float | None
    kept: bool


def fingerprints(records: Sequence[Record]) -> list[int]:
    """Return a hash of each record: of the id of its image, the question and the target."""
    contents = ([record.image_id, record.query, record.target] for record in records)
    digests = (hashlib.sha256(json.dumps(content, default=str).encode()).digest() for content in contents)
    return [int.from_bytes(digest[:7]) for digest in digests]


def record_ids(records: Sequence[Record], folders: ImageFolders | None) -> list[str]:
    """Return an id of each record that does not depend on the location of the data.

    The id is a hash of the paths of the images below their folder, the question, the target and the metadata. Equal
    records are numbered, because they are interchangeable.

    Args:
        records: the records.
        folders: folders of the images; an image outside of them is identified by the names of its file and folder.

    Raises:
        ConfigurationError: records with different image files have the same id.
    """
    roots = [Path(os.path.abspath(folder)) for folder in (() if folders is None else folders.folders)]
    seen: dict[str, list[Record]] = defaultdict(list)
    ids = []
    for record in records:
        names = [_name(image, roots) for image in record.images]
        part = None if record.tile is None else record.tile.area
        content = [names, part, record.query, record.target, record.image_index, record.metadata]
        text = json.dumps(content, default=str, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:20]
        equal = seen[digest]
        if equal and [*map(_place, equal[0].images)] != [*map(_place, record.images)]:
            raise ConfigurationError(
                f"data: {equal[0].location} and {record.location}: images of one name, {names[-1]}, in different "
                "folders with equal questions and labels, which success rates can't tell apart; rename one"
            )
        ids.append(f"{digest}-{len(equal)}" if equal else digest)
        equal.append(record)
    return ids


def _name(image: ImageSource, roots: Sequence[Path]) -> str:
    if not isinstance(image, Path):
        return str(image.key())
    path = Path(_place(image))
    root = next((root for root in roots if path.is_relative_to(root)), path.parents[min(1, len(path.parents) - 1)])
    return path.relative_to(root).as_posix()


def _place(image: ImageSource) -> str:
    """Return the absolute path of a file, or the key of a stored image."""
    return os.path.abspath(image) if isinstance(image, Path) else str(image.key())


def write_rates(path: Path, header: Header, entries: Sequence[Entry]) -> None:
    """Write the file of all samples."""
    with atomic_write(path) as partial:
        partial.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in (header, *entries)))


def read_rates(path: Path) -> tuple[Header, list[Entry]]:
    """Read the file of all samples.

    Raises:
        ConfigurationError: the file can't be read, has another format, or lacks lines.
    """
    lines = read_bytes(path).splitlines()
    expected = "expected a file that `python -m vrft filter` has written"
    if not lines:
        raise ConfigurationError(f"data.keep: {path} is empty; {expected}")
    try:
        header = msgspec.json.decode(lines[0], type=Header)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ConfigurationError(f"data.keep: {path}: line 1: {error}; {expected}") from error
    entries = []
    for number, line in enumerate(lines[1:], 2):
        try:
            entries.append(msgspec.json.decode(line, type=Entry))
        except (msgspec.DecodeError, RecursionError) as error:
            raise ConfigurationError(f"data.keep: {path}: line {number}: {error}") from error
    if len(entries) != header.samples:
        raise ConfigurationError(
            f"data.keep: {path} has {len(entries)} samples, and its first line says {header.samples}; is it incomplete?"
        )
    return header, entries


def kept_records(
    records: Sequence[Record], path: Path, asked: dict[str, Any], folders: ImageFolders | None
) -> tuple[list[Record], str]:
    """Return the training records that a file of success rates keeps, and a description of the others.

    Args:
        records: the training records of the run.
        path: the file, which may have further samples.
        asked: task and template of the run.
        folders: folders of the images, see `record_ids`.

    Raises:
        ConfigurationError: the file lacks a record, or keeps none.
    """
    require_file("keep", path, "a file that `python -m vrft filter` has written")
    header, entries = read_rates(path)
    known = {entry.id: entry for entry in entries}
    found = [known.get(name) for name in record_ids(records, folders)]
    unlisted = [record for record, entry in zip(records, found, strict=True) if entry is None]
    if unlisted:
        first = unlisted[0]
        raise ConfigurationError(
            f"data.keep: {path} lists no rate of {len(unlisted)} of {counted(len(records), 'training sample')}, e.g. "
            f"{first.location} (query {first.query!r}); images, questions or labels differ from those of its "
            f"{counted(len(entries), 'sample')}: run `python -m vrft filter` with this data"
        )
    listed = [entry for entry in found if entry is not None]
    kept = [record for record, entry in zip(records, listed, strict=True) if entry.kept]
    left_out = header.rule.left_out([entry.rate for entry in listed if not entry.kept])
    if not kept:
        raise ConfigurationError(
            f"data.keep: {path} keeps none of {counted(len(records), 'training sample')}: {left_out}; run "
            "`python -m vrft filter` again with another band (--lowest, --highest), which samples nothing anew"
        )
    for name in ("task", "template"):
        if (made := header.asked.get(name)) != asked[name]:
            notices.warn(f"data.keep: {path} was made with {name} {made!r}, and the run has {asked[name]!r}")
    if gone := [*_gone(records, kept)]:
        more = f" and {len(gone) - MAX_NAMED} more" if len(gone) > MAX_NAMED else ""
        notices.warn(f"data.keep leaves out every training sample of {', '.join(map(repr, gone[:MAX_NAMED]))}{more}")
    number = len(records) - len(kept)
    return kept, f"data.keep leaves out {number} of {len(records)} training records: {left_out}"


def _gone(records: Sequence[Record], kept: Sequence[Record]) -> Iterator[str]:
    """Yield the categories with no kept record."""
    left = {category(record) for record in kept}
    yield from (name for name in dict.fromkeys(map(category, records)) if name not in left)
