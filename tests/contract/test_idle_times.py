"""A server whose profile is wrong finds its true times while nobody asks."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from helpers.serving import png, serving

from fedstill.client.serving_client import ServingAddress, ServingClient
from fedstill.cloud_server.serving.server import dispatcher


def test_a_schedule_that_is_really_slow_is_no_longer_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(dispatcher, "QUIET_SECONDS", 0.002)
    with serving(tmp_path) as made, ServingClient(ServingAddress(made.target)) as client:
        infer = made.engine.infer

        def slow_at_4(images: Any, tasks: Any, schedule: Any) -> Any:
            if schedule.name == "-4":
                time.sleep(0.05)
            return infer(images, tasks, schedule)

        monkeypatch.setattr(made.engine, "infer", slow_at_4)
        monkeypatch.setattr(made.tasks, "_keep", full_disk)  # what was found is used all the same
        assert "-4" in {one.name for one in made.dispatcher.policy.profile.useful}
        deadline = time.monotonic() + 60
        while "-4" in {one.name for one in made.dispatcher.policy.profile.useful}:
            assert time.monotonic() < deadline, "the profile was never corrected"
            time.sleep(0.1)
        found = {one.name: one for one in made.dispatcher.policy.profile.schedules}
        assert found["-4"].seconds(1) > 3 * max(found["0"].seconds(1), found["-2"].seconds(1))
        assert found["-4"].accuracy == pytest.approx((0.86, 0.86))  # only times were corrected
        assert client.make_query("cats", png(), latency_ms=5000).schedule != "-4"
