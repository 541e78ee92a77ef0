"""Control Python's garbage collection."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def gc_disabled() -> Iterator[None]:
    """Disable garbage collection in the block, where it would repeatedly traverse a million new records."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
