"""Errors that a user can act on. This module imports nothing else from vrft."""

from __future__ import annotations


class ConfigurationError(ValueError):
    """A setting or a file that the user gave is wrong. The command line prints the message and exits with code 2.

    The message names the field, or the file and the record, and says what was expected.
    """


class RolloutFailed(RuntimeError):
    """A rollout engine returned no completions to train on. The run saves its last step and ends with this message."""


class RewardFailed(RolloutFailed, ConfigurationError):
    """A reward gave no score to an answer of a run, which saves its last step and ends with this message."""


class RolloutRefused(RolloutFailed, ConfigurationError):
    """A rollout failed for a reason that the user can fix."""
