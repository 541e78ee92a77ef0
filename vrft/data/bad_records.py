"""Bad records of a user's files, reported together."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from vrft.errors import ConfigurationError
from vrft.run_dir import RunDir

OnBadRecord = Literal["stop", "skip"]

MAX_LISTED = 20
"""Bad records listed in an error message; the rest are only counted."""


class BadRecords:
    """Collects the bad records of all files, so that one error can report them together."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def add(self, location: str, reason: str) -> None:
        """Add a record. `location` names the file, the entry in it and its id."""
        self.found.append(f"{location}: {reason}")

    def report(self, on_bad_record: OnBadRecord, run: RunDir, *, replace_list: bool) -> None:
        """Raise ConfigurationError if there are bad records; with "skip", warn and list them in `bad_records.txt`.

        Args:
            on_bad_record: raise or warn.
            run: folder of the run.
            replace_list: overwrite an existing list. An evaluation after training sees fewer records and keeps it.
        """
        if not self.found:
            return
        count = f"{len(self.found)} bad record{'s' if len(self.found) > 1 else ''}"
        if on_bad_record == "stop":
            more = [f"and {len(self.found) - MAX_LISTED} more"] if len(self.found) > MAX_LISTED else []
            advice = "fix them, or skip them with data.on_bad_record=skip"
            raise ConfigurationError("\n".join([f"{count}; {advice}", *self.found[:MAX_LISTED], *more]))
        rank_zero_warn(f"{count} skipped, listed in {run.bad_records}: {self.found[0]}")
        if replace_list or not run.bad_records.exists():
            write_lines(run.bad_records, self.found)


@rank_zero_only
def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write lines to a file in the run's folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
