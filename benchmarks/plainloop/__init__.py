"""Parts of `self_distillation.py`."""
