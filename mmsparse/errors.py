"""Errors that commands tell in one line."""


class UsageError(ValueError):
    """A mistake of the user, told in one line that needs no traceback."""
