"""Training: the algorithms, what a step is made of, and what a run needs around it."""
