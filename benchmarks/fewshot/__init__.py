"""Modules of `benchmarks/few_shot.py`: studies, trials with a budget, intervals and reports."""
