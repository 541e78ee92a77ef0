"""The commands of `python -m vrft`, one module per command. Modules that print help do not import torch."""
