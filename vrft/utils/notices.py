"""Print the assumptions of a run about its data, and keep them for the report."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from vrft.utils.distributed import is_rank_zero
from vrft.utils.files import write_json

MAX_NOTICES = 200
"""Maximum number of notices to keep, e.g. if all images of a folder vanish during training."""


class Notices:
    """The notices of a run without duplicates, written to a file once the run has a folder."""

    def __init__(self) -> None:
        self.texts: dict[str, None] = {}
        self.path: Path | None = None

    def add(self, text: str) -> None:
        """Keep a notice."""
        if text not in self.texts and len(self.texts) < MAX_NOTICES:
            self.texts[text] = None
            self._write()

    def write_to(self, path: Path) -> None:
        """Write the notices to a file now and after each new notice. Remove the file of an earlier command."""
        self.path = path
        if self.texts:
            self._write()
        elif is_rank_zero():
            path.unlink(missing_ok=True)

    def _write(self) -> None:
        if self.path is None or not is_rank_zero():
            return
        try:
            write_json(self.path, [*self.texts])
        except OSError as error:
            rank_zero_warn(f"{self.path} is incomplete: {error.strerror}")


_kept: ContextVar[Notices | None] = ContextVar("notices", default=None)


@contextmanager
def keeping_notices() -> Iterator[Notices]:
    """Collect the notices of the block."""
    token = _kept.set(Notices())
    try:
        found = _kept.get()
        assert found is not None
        yield found
    finally:
        _kept.reset(token)


def keep(text: str) -> None:
    """Keep a notice for the report, if a command collects them."""
    if (notices := _kept.get()) is not None:
        notices.add(text)


def warn(text: str) -> None:
    """Warn of an assumption about the data, and keep the notice for the report."""
    rank_zero_warn(text, stacklevel=5)
    keep(text)
