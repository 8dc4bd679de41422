"""One line for a machine that lacks the detectors."""

from __future__ import annotations

from fedstill.common.errors import DataError

EXTRA = "speech"


def missing_detector(setting: str, package: str) -> DataError:
    """What to say if ``setting`` is on and its ``package`` cannot be imported."""
    return DataError(f"{setting} needs {package}: install fedstill with the extra [{EXTRA}], or turn it off")
