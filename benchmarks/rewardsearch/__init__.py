"""Scenes, answers and climbs of reward_search.py."""
