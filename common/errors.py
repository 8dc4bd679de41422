"""Errors that end a command with one line: a user's mistake (exit code 2), or a run that failed (exit code 1)."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake that the user can correct; one line that says what is wrong and what to do instead."""


class ConfigError(UserError):
    """A request that cannot be done in this form; one line that says what to type instead."""


class RunError(RuntimeError):
    """A run that failed; one line."""


class DataError(UserError):
    """Something is wrong with the user's data; the message is one line and says what to do.

    Attributes:
        fault: of one clip's files: its kind, a key of ``datasets/files/faults.py``; empty if it is of another kind.
    """

    def __init__(self, message: str, fault: str = "") -> None:
        super().__init__(message)
        self.fault = fault
