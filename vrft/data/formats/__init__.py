"""Readers of the file formats that users bring their labelled images in, one module for each format."""
