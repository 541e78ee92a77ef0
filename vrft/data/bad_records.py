"""Collect and report unusable parts of a user's files: bad records, missing images and skipped files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn

from vrft.errors import ConfigurationError
from vrft.run_dir import RunDir
from vrft.utils import notices
from vrft.utils.display import counted

OnBadRecord = Literal["stop", "skip"]

OUTLINES = "outlines read as their bounding boxes"
PARTS = "shapes joined to other parts of the same object"
"""Keys of `BadRecords.read_as`."""

MAX_LISTED = 20
"""Maximum number of bad records listed in an error message; the rest are only counted."""


class BadRecords:
    """Collects the bad records of all files, so that one error can report them together."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.missing: list[str] = []
        """Records whose image does not exist."""
        self.passed_over: Counter[str] = Counter()
        """Number of valid files and images that are not used, by reason."""

        self.read_as: Counter[str] = Counter()
        """Number of objects that are converted when read, by the conversion."""

    def add(self, location: str, reason: str) -> None:
        """Add a record. `location` names the file, the entry in it and its id."""
        self.found.append(f"{location}: {reason}")

    def add_missing(self, location: str, reason: str) -> None:
        """Add a record whose image does not exist."""
        self.missing.append(f"{location}: {reason}")

    def update(self, other: BadRecords) -> None:
        """Add everything that another object has collected."""
        self.found += other.found
        self.missing += other.missing
        self.passed_over.update(other.passed_over)
        self.read_as.update(other.read_as)

    def left_out(self) -> list[str]:
        """Return counts with their reasons, for one line of output."""
        counts = [("bad records", len(self.found)), ("missing images", len(self.missing)), *self.passed_over.items()]
        return [f"{reason}: {count}" for reason, count in counts if count]

    def say(self, parts: Sequence[str]) -> None:
        """Print how the data is used, which objects were converted, and what was left out."""
        left_out = ", ".join(self.left_out())
        read_as = [f"{how}: {count}" for how, count in self.read_as.items() if count]
        otherwise = [*read_as, *([f"left out: {left_out}"] if left_out else [])]
        rank_zero_info("data: " + "; ".join([*parts, *otherwise]))
        for text in otherwise:
            notices.keep(f"data: {text}")

    def report(
        self, on_bad_record: OnBadRecord, on_missing_image: OnBadRecord, run: RunDir, *, replace_list: bool
    ) -> None:
        """Raise ConfigurationError if there are bad records; with "skip", warn and list them in `bad_records.txt`.

        Args:
            on_bad_record: raise or warn.
            on_missing_image: raise or warn if images don't exist.
            run: folder of the run.
            replace_list: overwrite an existing list. False for an evaluation after training, which reads fewer records.
        """
        stopped = [
            *(self.missing if on_missing_image == "stop" else ()),
            *(self.found if on_bad_record == "stop" else ()),
        ]
        if stopped:
            raise ConfigurationError("\n".join([self._advice(on_bad_record, on_missing_image), *shortened(stopped)]))
        listed = [*self.missing, *self.found]
        if listed:
            rank_zero_warn(f"{counted(len(listed), 'bad record')} skipped, listed in {run.bad_records}: {listed[0]}")
            if replace_list or not run.bad_records.exists():
                write_lines(run.bad_records, listed)

    def _advice(self, on_bad_record: OnBadRecord, on_missing_image: OnBadRecord) -> str:
        found = []
        if self.missing and on_missing_image == "stop":
            found.append(
                f"{counted(len(self.missing), 'missing image')}; check the folder of images, or leave "
                f"{'them' if len(self.missing) > 1 else 'it'} out with "
                "data.on_missing_image=skip"
            )
        if self.found and on_bad_record == "stop":
            them = "them" if len(self.found) > 1 else "it"
            found.append(
                f"{counted(len(self.found), 'bad record')}; fix {them}, or leave {them} out with "
                "data.on_bad_record=skip"
            )
        return "; ".join(found)


def shortened(lines: Sequence[str]) -> list[str]:
    """Return the first `MAX_LISTED` lines, followed by the number of omitted ones."""
    more = [f"and {len(lines) - MAX_LISTED} more"] if len(lines) > MAX_LISTED else []
    return [*lines[:MAX_LISTED], *more]


@rank_zero_only
def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write lines to a file in the run's folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", errors="backslashreplace")
