"""Modules of reward_search.py: scenes, answers and hill climbs."""
