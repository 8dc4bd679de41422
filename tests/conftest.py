"""Fixtures shared by the tests of several rooms."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

# Children inherit that a signal is ignored: run in the background of a script, the tests' Ctrl-C would reach nobody.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Real data: ``FEDSTILL_DATA``, or ``shared/data`` next to the repository; skips without it."""
    folder = Path(os.environ.get("FEDSTILL_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(
            "no real data: set FEDSTILL_DATA to the folder that holds cremad_sample, emotion_pairs, ..."
        )
    return folder
