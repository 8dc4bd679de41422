"""What is wrong with a sound, a picture or a film, told without its name: who asked for it knows the name."""

from __future__ import annotations

from fedstill.datasets.files.faults import DAMAGED


class MediaError(Exception):
    """Sound or pictures are missing; the message completes a sentence that begins with the file.

    Attributes:
        remedy: what to do, if it is not to get the file again.
        fault: its kind, a key of ``datasets/files/faults.py``.
    """

    def __init__(self, complaint: str, remedy: str = "", fault: str = DAMAGED) -> None:
        super().__init__(complaint)
        self.remedy, self.fault = remedy, fault
