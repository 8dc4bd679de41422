"""Which files pytest's workers take first, so that somebody computes while others wait.

Fleets mostly wait: for heartbeats, retries and slow links. The files of a lane run one after the other on one worker,
the lanes first of all files. Whoever has no lane takes the files that need the processor, and so does a lane's worker
after its lane.
"""

from __future__ import annotations

from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

LANES = (
    ("test_faults_cloud.py", "test_faults_link.py", "test_fleet_endpoint.py", "test_fleet_life.py"),
    ("test_faults_device.py", "test_fleet.py", "test_simulate_flower.py", "test_tutorial_fleet.py"),
)


def place_of(path: str) -> tuple[int, int]:
    """(lane, place in it) of a test file; the lane after the last one is no lane."""
    name = path.rsplit("/", 1)[-1]
    for number, lane in enumerate(LANES):
        if name in lane:
            return number, lane.index(name)
    return len(LANES), 0


def lanes_first(items: list[pytest.Item]) -> None:
    """Sort what was collected."""
    items.sort(key=lambda item: place_of(item.nodeid.split("::", 1)[0]))


class LaneScheduling(LoadFileScheduling):  # type: ignore[misc]
    """A file is one piece of work, as with ``--dist loadfile``, and so is a lane."""

    def _split_scope(self, nodeid: str) -> str:
        path: str = super()._split_scope(nodeid)
        lane, _ = place_of(path)
        return path if lane == len(LANES) else f"lane {lane}"


def scheduler(config: pytest.Config, log: Any) -> LaneScheduling | None:
    """For ``--dist loadfile``."""
    return LaneScheduling(config, log) if config.getvalue("dist") == "loadfile" else None
