"""Data modules for files in common formats and for generated data."""

from vrft.utils.lazy import exports

__getattr__, __dir__, __all__ = exports(__name__)
