"""Modules of `self_distillation.py`."""
