"""Published datasets, each read from its own files, and generated ones."""
