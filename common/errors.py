"""What ends a command with one line: a mistake of the user's (exit code 2), or a run that failed (exit code 1)."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake that the user can mend; one line that says what is wrong and what to do instead."""


class ConfigError(UserError):
    """Something asked for that cannot be done as asked; one line that says what to type instead."""


class RunError(RuntimeError):
    """Something that ran and failed; one line."""
