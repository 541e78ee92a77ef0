"""Errors that a user can act on. This module imports nothing else from vrft."""

from __future__ import annotations


class ConfigurationError(ValueError):
    """Raised for an invalid setting or file of the user. The command line prints the message and exits with code 2.

    The message names the field, or the file and the record, and says what was expected.
    """


class RolloutFailed(RuntimeError):
    """Raised if a rollout engine returns no completions to train on. The run saves its last step, then stops."""


class RewardFailed(RolloutFailed, ConfigurationError):
    """Raised if a reward can't score an answer during a run. The run saves its last step, then stops."""


class RolloutRefused(RolloutFailed, ConfigurationError):
    """Raised if a rollout fails for a reason that the user can fix. The run saves its last step, then stops."""
