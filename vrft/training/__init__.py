"""Training: the algorithms, the parts of a step, and the run around them."""
