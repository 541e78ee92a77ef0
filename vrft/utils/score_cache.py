"""Scores by key, in memory and perhaps in a file that several processes append to."""

from __future__ import annotations

import json
import os
from pathlib import Path

from vrft.errors import ConfigurationError
from vrft.utils.regular_files import read_regular

MOST = 200_000
"""Scores that are kept in memory; beyond it, the oldest are dropped."""


class ScoreCache:
    """Scores from 0 to 1 by key. Threads may share it."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.scores: dict[str, float] = {}

    def read(self) -> None:
        """Read the file, if there is one. Lines that are incomplete are left out.

        Raises:
            ConfigurationError: it can't be read or written.
        """
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab"):
                pass
            lines = read_regular(self.path).splitlines()
        except OSError as error:
            raise ConfigurationError(f"cache: {self.path}: {error.strerror}") from error
        for line in lines:
            try:
                key, score = json.loads(line)
            except (ValueError, TypeError, RecursionError):
                continue
            if isinstance(key, str) and isinstance(score, float) and 0 <= score <= 1:
                self._keep(key, score)

    def get(self, key: str) -> float | None:
        """Return a score, or None."""
        return self.scores.get(key)

    def add(self, key: str, score: float) -> None:
        """Keep a score, also in the file: as one write, so that lines of several processes don't mix."""
        self._keep(key, score)
        if self.path is not None:
            file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(file, f"{json.dumps([key, score])}\n".encode())
            finally:
                os.close(file)

    def _keep(self, key: str, score: float) -> None:
        self.scores[key] = score
        if len(self.scores) > MOST:
            self.scores.pop(next(iter(self.scores)), None)
