"""Fixtures shared by the tests of several rooms."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from helpers.data import DATA

# Children inherit that a signal is ignored: run in the background of a script, the tests' Ctrl-C would reach nobody.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Real data; skips without it."""
    if not DATA.is_dir():
        pytest.skip(
            "no real data: set FEDSTILL_DATA to the folder that holds cremad_sample, emotion_pairs, ..."
        )
    return DATA
