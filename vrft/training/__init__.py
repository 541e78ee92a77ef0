"""Training: algorithms, the parts of a training step, and the trainer."""
