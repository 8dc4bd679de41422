"""Readers with every fault that the fuzz test looks for; a module of its own because a new process imports it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from fedstill.common.errors import DataError
from helpers.fuzz_formats import Format


def _read(path: Path, content: bytes) -> None:
    match path.name:
        case "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "hang":
            time.sleep(600)
        case "other_error":
            raise KeyError("label")
        case "wrong_result":
            raise AssertionError
        case "no_path":
            raise DataError("cannot be read: download it again")
        case "named":
            raise DataError(f"{path}: cannot be read: download it again")
        case "greedy":
            assert bytearray(b"x" * 300_000_000)


NAMES = ("crash", "hang", "other_error", "wrong_result", "no_path", "named", "greedy", "read")
FORMATS = {name: Format("bad", lambda: bytes(100), _read) for name in NAMES}
