"""Fixtures shared by the tests of several rooms."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from helpers.data import DATA

# Children inherit that a signal is ignored: run in the background of a script, the tests' Ctrl-C would reach nobody.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from helpers.lanes import scheduler  # needs xdist, which not everybody has

    return scheduler(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):  # one of several workers
        from helpers.lanes import lanes_first

        lanes_first(items)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Real data; skips without it."""
    if not DATA.is_dir():
        pytest.skip(
            "no real data: set FEDSTILL_DATA to the folder that holds cremad_sample, emotion_pairs, ..."
        )
    return DATA
