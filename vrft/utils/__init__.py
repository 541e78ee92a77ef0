"""Helpers that know nothing of vision or reinforcement learning."""
