"""What runs beside training: progress, transcripts, export, summary."""
