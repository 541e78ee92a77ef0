"""Cache scores by key in memory and, optionally, in a file to which several processes append."""

from __future__ import annotations

import json
import os
from pathlib import Path

from vrft.errors import ConfigurationError
from vrft.utils.regular_files import read_regular

MAX_SCORES = 200_000
"""Maximum number of scores in memory. The oldest are dropped first."""


class ScoreCache:
    """Scores in 0..1 by key. Thread-safe."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.scores: dict[str, float] = {}

    def read(self) -> None:
        """Read the file, if there is one, and skip incomplete lines.

        Raises:
            ConfigurationError: the file can't be read or written.
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
        """Add a score, also to the file, by a single write, so that lines of several processes don't mix."""
        self._keep(key, score)
        if self.path is not None:
            file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(file, f"{json.dumps([key, score])}\n".encode())
            finally:
                os.close(file)

    def _keep(self, key: str, score: float) -> None:
        self.scores[key] = score
        if len(self.scores) > MAX_SCORES:
            self.scores.pop(next(iter(self.scores)), None)
