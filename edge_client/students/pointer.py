"""Which student a device uses: a small file beside the students, read without anything that could load one."""

from __future__ import annotations

import json
import logging
import os
from contextlib import suppress
from pathlib import Path

from fedstill.protos.messages import is_version

log = logging.getLogger(__name__)

POINTER = "current.json"


def student_file(directory: Path, version: str) -> Path:
    """Where a version lies."""
    return directory / f"{version}.safetensors"


def read_pointer(directory: Path) -> tuple[str, str]:
    """(current, previous) version, empty if there is none."""
    try:
        pointer = json.loads((directory / POINTER).read_bytes())
        current, previous = pointer["current"], pointer["previous"]
    except (FileNotFoundError, NotADirectoryError):
        return "", ""
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        log.warning("pointer damaged file=%s: as if nothing were installed", POINTER)
        return "", ""
    return current if is_version(current) else "", previous if is_version(previous) else ""


def confirm(directory: Path) -> None:
    """The student that is in use is the one that is meant for the device: it waits for none (``Contacts``)."""
    with suppress(OSError):
        os.utime(directory / POINTER)


def version_in_use(directory: Path) -> str:
    """The version of the student that the device uses, if its file is there; empty if there is none."""
    return next((one for one in read_pointer(directory) if one and student_file(directory, one).exists()), "")
