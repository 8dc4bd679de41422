"""Errors that end a command with one line: a user's mistake (exit code 2), or a run that failed (exit code 1)."""

from __future__ import annotations

import re

_BREAKS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
"""Control characters and line ends: names of files may have them, above all in a damaged zip."""


def first_line(error: object) -> str:
    """Of what an error says; its kind, if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class UserError(ValueError):
    """A mistake that the user can correct; one line that says what is wrong and what to do instead."""


class ConfigError(UserError):
    """A request that cannot be done in this form; one line that says what to type instead."""


class RunError(RuntimeError):
    """A run that failed; one line."""


class DataError(UserError):
    """Something is wrong with the user's data; the message is one line and says what to do.

    Control characters, which may come from a file's name, are shown as in ``"\\n"``.

    Attributes:
        fault: of one clip's files: its kind, a key of ``datasets/files/faults.py``; empty if it is of another kind.
    """

    def __init__(self, message: str, fault: str = "") -> None:
        super().__init__(_BREAKS.sub(lambda found: found[0].encode("unicode_escape").decode(), message))
        self.fault = fault
