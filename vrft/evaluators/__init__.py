"""Evaluators: callbacks that score held-out answers under the benchmarks' rules."""

from vrft.utils.lazy import exports

__getattr__, __dir__, __all__ = exports(__name__)
