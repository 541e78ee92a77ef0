"""Readers of users' annotation files, one module per format."""
