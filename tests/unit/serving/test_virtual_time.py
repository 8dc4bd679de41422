"""The simulator, on timelines small enough to follow by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from helpers.queries import ON_THESIS, made_profile

from fedstill.cloud_server.serving.policies.fixed import FixedPolicy
from fedstill.cloud_server.serving.policies.registry import make_policy
from fedstill.cloud_server.serving.scheduling.policy import Policy
from fedstill.cloud_server.serving.scheduling.profile import Profile
from fedstill.cloud_server.serving.scheduling.queries import Batch, Decision, Query
from fedstill.cloud_server.serving.scheduling.thesis_profile import thesis_profile
from fedstill.cloud_server.serving.scheduling.virtual_time import Outcome, VirtualEngine, as_queries, simulate
from fedstill.datasets.loads.arrivals import step
from fedstill.datasets.loads.query_mix import Load, draw_load


def made_load(rows: Sequence[tuple[float, float, float]]) -> Load:
    """A load of task 0 with utility 1 from (arrival, latency, draw)."""
    arrival, latency, draw = (np.array(column) for column in zip(*rows, strict=True))
    return Load(arrival, arrival + latency, np.zeros(len(rows), dtype=np.int64), np.ones(len(rows)), draw)


def run(
    policy: Policy, load: Load, profile: Profile, engine: VirtualEngine | None = None, seed: int = 0
) -> Outcome:
    return simulate(policy, load, as_queries(load), profile, np.random.default_rng(seed), engine)


def test_a_timeline_by_hand() -> None:
    """Schedule "fast": 10 ms + 10 ms per query, accuracy 0.8.

    0.00 query 0 starts alone (the engine is idle) and ends at 0.02: in time, draw 0.1: right.
    0.01 query 1 waits, 0.015 query 2 waits; both start at 0.02 and end at 0.05. 1: draw 0.9, wrong. 2: right.
    0.03 query 3 arrives while they run; at 0.05 it has 5 ms left, too few: evicted.
    1.00 query 4 starts at once.
    """
    profile = made_profile()
    rows = [(0.0, 1.0, 0.1), (0.01, 1.0, 0.9), (0.015, 1.0, 0.2), (0.03, 0.025, 0.1), (1.0, 1.0, 0.79)]
    load = made_load(rows)
    outcome = run(FixedPolicy("tome10", profile, -10), load, profile)
    assert outcome.kind.tolist() == [1, 2, 1, 4, 1]
    assert outcome.waiting[[0, 1, 2, 4]] == pytest.approx([0.0, 0.01, 0.005, 0.0])
    assert np.isnan(outcome.waiting[3])
    assert outcome.batch_start == pytest.approx([0.0, 0.02, 1.0])
    assert outcome.batch_seconds == pytest.approx([0.02, 0.03, 0.02])
    assert outcome.batch_size.tolist() == [1, 2, 1]
    assert outcome.batch_accuracy == pytest.approx([1.0, 0.5, 1.0])
    assert outcome.schedule.tolist() == [1, 1, 1, -1, 1]
    assert outcome.utility_earned(load) == 3
    assert not outcome.rejected.any()


def test_an_engine_slower_than_its_profile_answers_late() -> None:
    """20 ms become 60 ms, the deadline is at 50."""
    profile = made_profile()
    load = made_load([(0.0, 0.05, 0.1)])
    outcome = run(FixedPolicy("tome10", profile, -10), load, profile, VirtualEngine(slowdown=lambda _: 3.0))
    assert outcome.kind.tolist() == [3]


def test_loading_another_model_blocks_the_engine() -> None:
    """At first one query in 50 ms looks like 20 per second: "small" is loaded (0.5 s). At 2 s "large" (1 s)
    keeps up with one per second; at 4 s it is there already."""
    profile = made_profile()
    load = made_load([(0.0, 3.0, 0.1), (2.0, 3.0, 0.1), (4.0, 3.0, 0.1)])
    outcome = run(make_policy("infaas", profile), load, profile)
    assert outcome.loading_seconds == 1.5
    assert outcome.waiting == pytest.approx([0.5, 1.0, 0.0])


def test_the_same_draws_meet_every_policy() -> None:
    """A more accurate schedule is right wherever a less accurate one is."""
    profile = thesis_profile()
    generator = np.random.default_rng(0)
    load = draw_load(np.arange(400) / 10, profile.tasks, generator)
    worse, better = (run(make_policy(name, profile), load, profile).kind == 1 for name in ("tome20", "vpt8"))
    assert worse.sum() < better.sum()
    assert not np.any(worse & ~better)


def test_jitter_is_the_same_for_the_same_seed() -> None:
    profile = thesis_profile()
    load = draw_load(np.arange(2000) / 400, profile.tasks, np.random.default_rng(0))
    runs = [
        run(make_policy("fedstill", profile), load, profile, VirtualEngine(jitter=0.1), seed).batch_seconds
        for seed in (1, 1, 2)
    ]
    assert np.array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])


@pytest.mark.parametrize("name", ON_THESIS)
def test_every_query_gets_exactly_one_answer_through_a_burst(name: str) -> None:
    """Ten times the load for two seconds, on an engine that is sometimes three times as slow; `simulate` counts."""
    profile = thesis_profile()
    load = draw_load(
        step(150, 10, 2, 4, 8, np.random.default_rng(1)), profile.tasks, np.random.default_rng(2)
    )
    engine = VirtualEngine(jitter=0.2, slowdown=lambda now: 3.0 if 3 <= now < 5 else 1.0)
    outcome = run(make_policy(name, profile), load, profile, engine)
    assert len(outcome.kind) == len(load)
    assert set(outcome.kind.tolist()) <= {1, 2, 3, 4}
    assert int(outcome.batch_size.sum()) == int((outcome.kind != 4).sum())
    assert np.all(outcome.waiting[outcome.kind != 4] >= 0)


def test_fedstill_is_hardly_late_on_an_engine_that_scatters() -> None:
    """The margin of the latency model: at most 1 % late under overload with 10 % scatter."""
    profile = thesis_profile()
    load = draw_load(np.arange(30_000) / 1500, profile.tasks, np.random.default_rng(2))
    outcome = run(make_policy("fedstill", profile), load, profile, VirtualEngine(jitter=0.1))
    assert np.mean(outcome.kind == 3) <= 0.01
    assert np.mean(outcome.kind == 1) > 0.2


class TwiceServing(Policy):
    """Breaks its promise: answers its first query in every batch."""

    def __init__(self, profile: Profile) -> None:
        super().__init__(profile)
        self._seen: list[Query] = []
        self._left = 0

    def enqueue(self, query: Query, now: float) -> None:
        self._seen.append(query)
        self._left += 1

    def dispatch(self, now: float) -> Decision:
        if not self._left:
            return Decision(None)
        self._left -= 1
        return Decision(Batch((self._seen[0],), self.profile.fastest, 0.02))

    def withdraw(self, identifier: int) -> Query | None:
        return None

    def queued(self) -> int:
        return self._left


def test_a_policy_that_answers_twice_is_caught() -> None:
    profile = made_profile()
    with pytest.raises(RuntimeError, match="query 0 was answered 2 times"):
        run(TwiceServing(profile), made_load([(0.0, 1.0, 0.1), (0.1, 1.0, 0.1)]), profile)
