"""One boundary for decoders: whatever a library raises on a damaged file becomes one line that names the file.

Codecs are fed bytes from anywhere, and they answer damage with their own errors, but also with ValueError, IndexError
or MemoryError. A list of these would never be complete, and one that is missed stops a whole preparation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedstill.common.errors import DataError
from fedstill.datasets.decoding.media.error import MediaError
from fedstill.datasets.files.faults import MISSING, PACKAGE, fault_of
from fedstill.datasets.files.file_names import REPLACE

NO_FFMPEG = (
    "needs FFmpeg, which is not installed: install fedstill with the extra [video] as well ('.[edge,video]' on a "
    "device), or convert it to a wav file with pictures beside it"
)
_OPEN_FILE = re.compile(r"(Error opening )?<_io\.\w+ [^>]*>:?\s*")


@contextmanager
def decoder_errors(path: Path, what: str = "file") -> Iterator[None]:
    """Turn every exception of the block into a DataError about ``path``; DataErrors pass unchanged."""
    try:
        yield
    except DataError:
        raise
    except MediaError as error:
        raise DataError(f"{path}: {error}: {error.remedy or REPLACE}", error.fault) from error
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "av":
            raise DataError(f"{path}: {NO_FFMPEG}", PACKAGE) from error
        reason = f"{path}: cannot decode this {what} ({_reason(error)}): {REPLACE}"
        raise DataError(reason, fault_of(error)) from error


def check_exists(path: Path, data: bytes | None) -> None:
    """Raises DataError if there is neither a file nor its bytes."""
    if data is None and not path.exists():
        raise DataError(f"{path}: no such file: check the path, or {REPLACE}", MISSING)


def _reason(error: Exception) -> str:
    """The first line of a codec's error, without the name of the file, which our message has already."""
    text = str(getattr(error, "strerror", None) or error)
    return _OPEN_FILE.sub("", next(iter(text.splitlines()), "")).rstrip(". ") or type(error).__name__
