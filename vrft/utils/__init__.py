"""Helpers that are independent of vision and reinforcement learning."""
