"""What is wrong with a sound, a picture or a film, told without its name: who asked for it knows the name."""

from __future__ import annotations


class MediaError(Exception):
    """Sound or pictures are missing; the message completes a sentence that begins with the file.

    Attributes:
        remedy: what to do, if it is not to get the file again.
    """

    def __init__(self, complaint: str, remedy: str = "") -> None:
        super().__init__(complaint)
        self.remedy = remedy
