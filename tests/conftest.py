"""What several rooms' tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Real data: ``FEDSTILL_DATA``, or ``shared/data`` next to the repository; skips without it."""
    folder = Path(os.environ.get("FEDSTILL_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(
            "no real data: set FEDSTILL_DATA to the folder that holds cremad_sample, emotion_pairs, ..."
        )
    return folder
