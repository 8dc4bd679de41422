"""What is wrong with a sound file, told without its name: the readers here get bytes, and know of no path."""

from __future__ import annotations


class SoundDamage(Exception):
    """Sound is missing; the message completes a sentence that begins with the file.

    Attributes:
        remedy: what to do, if it is not to get the file again.
    """

    def __init__(self, complaint: str, remedy: str = "") -> None:
        super().__init__(complaint)
        self.remedy = remedy
