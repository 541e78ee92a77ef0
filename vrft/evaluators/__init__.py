"""Evaluators: callbacks that score held-out answers by the rules of the benchmarks."""

from vrft.utils.lazy import exports

__getattr__, __dir__, __all__ = exports(__name__)
