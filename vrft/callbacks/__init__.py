"""Callbacks of a run: checkpoints, signals, transcripts, guards, held-out answers, predictions, export, summary."""
