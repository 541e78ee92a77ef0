"""The commands of `python -m vrft`, one module each. Modules that print help do not import torch."""
