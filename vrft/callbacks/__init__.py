"""Callbacks: checkpoints, signals, transcripts, guards, held-out answers, predictions, export and the summary."""
