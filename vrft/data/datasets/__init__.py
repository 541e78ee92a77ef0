"""Published datasets, each read from its original files, and generated datasets."""
