"""Zips as people have them: what cannot be opened or read is one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from zipfile import ZipFile

from fedstill.common.errors import DataError
from fedstill.datasets.files.faults import fault_of
from fedstill.datasets.files.file_names import REPLACE


def open_zip(path: Path) -> ZipFile:
    """The open zip. Raises DataError if there is none, or no readable one."""
    try:
        return ZipFile(path)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such folder or zip: check the path") from error
    except Exception as error:  # zipfile lets through what its parts raise on odd bytes
        raise DataError(f"{path}: is not a readable zip ({error}): {REPLACE}") from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what reading a file, or an entry of a zip, may raise into a DataError about ``path``."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{path}: cannot be read ({error}): {REPLACE}", fault_of(error)) from error
