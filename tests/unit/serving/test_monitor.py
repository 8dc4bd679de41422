"""What an operator is shown: figures that add up, alarms that come and go, JSON as documented and of bounded size."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from helpers.page_keys import assert_documented, documented
from helpers.watched import Watched, profile

from fedstill.cloud_server.serving.engine.memory_limit import limit_bytes
from fedstill.cloud_server.serving.monitoring.capacity import capacity, pace
from fedstill.cloud_server.serving.monitoring.monitor import Monitor
from fedstill.cloud_server.serving.monitoring.recorder import MOST_TASKS
from fedstill.cloud_server.serving.scheduling.joint_profile import join
from fedstill.cloud_server.serving.server.events import RanBatch


def size(plain: dict[str, Any]) -> int:
    return len(json.dumps(plain, separators=(",", ":")))


def firing(watched: Watched) -> dict[str, str]:
    return {one["name"]: one["about"] for one in watched.monitor.snapshot()["alarms"] if one["firing"]}


def test_every_documented_key_comes_and_no_other() -> None:
    watched = Watched()
    watched.starting = {"doing": "timing", "seconds": 1.0, "done": None, "of": 3,
                        "steps": [{"doing": "opening", "seconds": 0.1}]}  # fmt: skip
    found = assert_documented(watched.monitor.snapshot())
    watched.starting = {}
    found |= assert_documented(watched.monitor.snapshot())  # nothing has happened yet
    watched.recorder.dropped("cats", "failed", 1)
    watched.live(30, 260)
    found |= assert_documented(watched.monitor.snapshot())
    watched.monitor = Monitor("fedstill")
    found |= assert_documented(watched.monitor.snapshot())  # before there is anything to serve
    assert found == documented("events")


def test_every_documented_column_comes_and_no_other() -> None:
    watched = Watched()
    watched.live(10, 260, calm=True)
    found = assert_documented(watched.monitor.history("5m"), "history")
    found |= assert_documented(watched.monitor.history("5m", "cats"), "history")
    assert found == documented("history")


def test_figures_are_those_of_the_last_seconds() -> None:
    watched = Watched()
    watched.live(40, 200, calm=True)
    watched.live(20, 80, calm=True)
    shown = watched.monitor.snapshot()
    now, (cats, dogs) = shown["now"], shown["tasks"]
    assert (now["queries"], now["answered"], now["dropped"]) == (80, 80, 0)
    assert cats["queries"] + dogs["queries"] == now["queries"]
    assert now["earned"] == pytest.approx(80 * 0.5 * 0.9)
    assert now["busy"] == pytest.approx(10 * 0.08 * now["bias"] ** -1, rel=0.1)  # ten batches of 8 at 10 ms
    assert now["latency_ms"]["p50"] < now["latency_ms"]["p95"] < now["latency_ms"]["p99"]
    assert 0 < now["error"] < 0.1
    assert shown["totals"]["queries"] == 40 * 200 + 20 * 80
    assert (cats["version"], cats["objective_ms"]) == (3, 400)
    rows = watched.monitor.history("5m", "cats", after=50)
    assert rows["columns"]["queries"] == [40.0] * 10
    assert rows["ends"] == [float(end) for end in range(51, 61)]
    assert watched.monitor.history("5m", after=rows["next"])["ends"] == []


def test_of_two_engines_busy_is_the_mean_and_capacity_the_sum() -> None:
    watched = Watched()
    watched.live(30, 200, calm=True)
    alone, rows = watched.monitor.snapshot(), watched.monitor.history("5m")["columns"]
    watched.dispatcher.engines = 2
    shared, halves = watched.monitor.snapshot(), watched.monitor.history("5m")["columns"]
    assert shared["now"]["busy"] == pytest.approx(alone["now"]["busy"] / 2, rel=0.01)
    assert shared["trunks"][0]["busy"] == pytest.approx(alone["trunks"][0]["busy"] / 2, rel=0.01)
    assert shared["capacity"]["most"] == pytest.approx(2 * alone["capacity"]["most"], rel=0.01)
    assert halves["busy"] == pytest.approx([one / 2 for one in rows["busy"]], abs=0.001)
    assert (shared["now"]["batch_ms"], halves["error"]) == (alone["now"]["batch_ms"], rows["error"])


def test_a_wall_clock_that_jumps_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched()
    watched.live(5)
    monkeypatch.setattr("time.time", lambda: 4.0)
    watched.live(5)
    assert watched.monitor.history("5m")["ends"] == [float(end) for end in range(1, 11)]
    assert watched.monitor.snapshot()["uptime"] == 10


def test_the_state_says_why_a_server_is_not_ready() -> None:
    watched = Watched()
    watched.starting = {"doing": "reading the weights"}
    assert watched.monitor.snapshot()["state"] == "starting"
    watched.starting = {}
    assert watched.monitor.snapshot()["state"] == "ready"
    watched.is_ready = False
    assert watched.monitor.snapshot()["state"] == "retiring"
    watched.dispatcher.draining = True
    assert watched.monitor.snapshot()["state"] == "draining"


def test_answers_stay_small_whatever_is_served_and_however_long() -> None:
    watched = Watched({"": [f"task-{place:03d}-{'x' * 50}" for place in range(MOST_TASKS + 10)]})
    watched.live(12, 400, calm=True)
    watched.live(300, 1, calm=True)
    shown = watched.monitor.snapshot()
    assert (len(shown["tasks"]), shown["tasks_left_out"]) == (MOST_TASKS, 10)
    assert size(shown) < 32_000
    assert size(watched.monitor.history("5m")) < 64_000
    few = Watched()
    few.live(310, 12)
    assert size(few.monitor.snapshot()) < 3_500
    assert size(few.monitor.history("5m", after=few.monitor.history("5m")["next"] - 1)) < 600  # each second


def test_events_do_not_wait_for_readers() -> None:
    watched = Watched()
    with watched.recorder._read_lock:  # somebody makes JSON of a day
        events = threading.Thread(target=watched.live_without_tick, args=(10,), daemon=True)
        events.start()
        events.join(10)
        assert not events.is_alive()


def test_capacity_follows_mix_and_pace() -> None:
    made = profile(("cats", "dogs"))
    found = capacity(made, {}, {}, 0.0)
    assert (found.most, found.accurate, found.best) == (pytest.approx(250), pytest.approx(100), "0")
    assert capacity(made, {}, {}, 120.0).best == "-10"
    assert capacity(made, {}, {"": 2.0}, 120.0).best == "-20"
    assert capacity(made, {}, {"": 2.0}, 120.0).most == pytest.approx(125)
    assert capacity(made, {}, {}, 251.0).best == ""
    joint = join({"fast": profile(("cats",)), "slow": profile(("dogs",), 4.0)})
    assert capacity(joint, {"cats": 1}, {}, 0).most == pytest.approx(250)
    assert capacity(joint, {"cats": 1, "dogs": 1}, {}, 0).most == pytest.approx(2 / (1 / 250 + 4 / 250))
    assert capacity(joint, {}, {}, 0).best == ""
    assert pace(joint, "slow", {"slow:-20": (2.0, 16.0, 0.512)}) == pytest.approx(2)
    assert pace(joint, "slow", {"fast:-20": (2.0, 16.0, 0.512)}) is None


def test_overload_is_watched_at_once_an_alarm_after_ten_minutes_and_gone_afterwards() -> None:
    watched = Watched()

    def pass_by(seconds: int, refused: int) -> None:
        for _ in range(seconds):
            watched.recorder.offered("cats", 0.5, 100)
            watched.recorder.answered("cats", 0.5, (0.9,) * (100 - refused), late=False)
            if refused:
                watched.recorder.dropped("cats", "overload", refused)
            watched.live(1, 0)

    pass_by(120, 0)
    assert watched.monitor.snapshot()["alarms"] == []
    pass_by(120, 40)
    (one,) = (one for one in watched.monitor.snapshot()["alarms"] if one["name"] == "FedstillServeDrops")
    assert not one["firing"]
    assert 50 < one["seconds"] < 120
    pass_by(590, 40)
    assert "FedstillServeDrops" in firing(watched)
    pass_by(320, 0)
    assert "FedstillServeDrops" not in firing(watched)


def test_one_failed_query_names_its_task_for_ten_minutes() -> None:
    watched = Watched()
    watched.live(5, 10)
    watched.recorder.dropped("dogs", "failed", 1)
    watched.live(1, 10)
    assert firing(watched) == {"FedstillServeFails": "dogs"}
    watched.live(620, 0)
    assert firing(watched) == {}


def test_late_answers_and_wrong_predictions() -> None:
    watched = Watched()
    for _ in range(920):
        watched.recorder.offered("cats", 1.0, 10)
        watched.recorder.answered("cats", 1.0, (0.9,) * 10, late=True)
        watched.recorder.ran(RanBatch(0.0, "0", {"cats": 10}, 0.2, 0.1, (0.01,) * 10, 0, 0, 1e-4))
        watched.clock.now += 1
        watched.monitor.tick()
    assert firing(watched) == {"FedstillServeLate": "", "FedstillServeLatencyModel": ""}
    assert watched.monitor.snapshot()["now"]["bias"] == 2


def test_an_idle_server_that_refuses_and_one_that_is_only_idle() -> None:
    watched = Watched()
    watched.live(10, 90, calm=True)
    watched.live(200, 0)
    assert firing(watched) == {}
    for _ in range(70):
        watched.recorder.offered("cats", 0.5, 1)
        watched.recorder.dropped("cats", "too_late", 1)
        watched.live(1, 0)
    assert "FedstillServeIdle" in firing(watched)
    watched.live(1, 90, calm=True)  # a batch
    assert "FedstillServeIdle" not in firing(watched)


def test_clients_that_leave_an_idle_server_are_no_alarm() -> None:
    watched = Watched()
    for _ in range(90):
        watched.recorder.offered("cats", 0.5, 1)
        watched.recorder.dropped("cats", "cancelled", 1)
        watched.live(1, 0)
    assert firing(watched) == {}


def test_memory_and_rate_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched()
    monkeypatch.setattr(watched.monitor, "_limit", 1000)
    for _ in range(740):
        watched.recorder.limited("shop", 1, False)
        watched.recorder.limited("till", 1, True)
        watched.clock.now += 4  # ticks may come late
        watched.live(1, 0)
    assert firing(watched) == {"FedstillServeMemory": "", "FedstillServeRateLimited": "shop"}
    watched.live(901, 0)
    assert firing(watched) == {"FedstillServeMemory": ""}


def test_a_container_may_allow_less_than_the_machine_has(tmp_path: Any) -> None:
    machine = limit_bytes(())
    (tmp_path / "max").write_text("max\n")
    (tmp_path / "less").write_text("123456789\n")
    assert limit_bytes((str(tmp_path / "none"), str(tmp_path / "max"))) == machine
    assert limit_bytes((str(tmp_path / "max"), str(tmp_path / "less"))) == 123456789
