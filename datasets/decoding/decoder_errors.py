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
from fedstill.datasets.decoding.image_files import REPLACE, first_line

_IN_MEMORY = re.compile(r"(Error opening )?<_io\.\w+ object at \w+>:?\s*")


@contextmanager
def decoder_errors(path: Path, what: str = "file") -> Iterator[None]:
    """Turn every exception of the block into a DataError about ``path``; DataErrors pass unchanged."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{path}: cannot decode this {what} ({_reason(error)}): {REPLACE}") from error


def _reason(error: Exception) -> str:
    """One line, without the name of a buffer in memory, which means nothing to a reader."""
    return _IN_MEMORY.sub("", first_line(error)).rstrip(". ") or type(error).__name__
