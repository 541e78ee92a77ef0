"""The one exception for what a user can mend."""


class ConfigurationError(ValueError):
    """A setting or a file that a user gave is wrong. The front door prints it as one line and exits with code 2.

    The message names the field or the file and record, and says what was expected.
    """
