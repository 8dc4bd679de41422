"""Under more load than can be served, whoever gets no answer is told early, also if all queries are worth the same."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from helpers.queries import made_profile, made_query

from fedstill.cloud_server.serving.policies.fedstill import FedstillPolicy, FedstillSettings
from fedstill.cloud_server.serving.scheduling.profile import Profile, Schedule
from fedstill.cloud_server.serving.scheduling.queries import Decision, Query, Rejection
from fedstill.cloud_server.serving.scheduling.thesis_profile import thesis_profile
from fedstill.cloud_server.serving.scheduling.virtual_time import VirtualEngine, as_queries, simulate
from fedstill.datasets.loads.arrivals import poisson
from fedstill.datasets.loads.query_mix import TABLE_3_5, QueryKind, draw_load

OBJECTIVE = 0.6
EQUAL = tuple(QueryKind(task, OBJECTIVE, 1.0) for task in ("CIFAR10", "CIFAR100", "EuroSAT"))
CPU = Profile(
    "ViT-Tiny on two cores",
    "shape of a measured one",
    ("a", "b", "c"),
    (
        Schedule("0", 0, 0.0023, 0.00774, (0.75, 0.50, 0.95), 32),
        Schedule("-10", -10, 0.0058, 0.00623, (0.73, 0.47, 0.94), 32),
        Schedule("-15", -15, 0.0059, 0.00486, (0.70, 0.42, 0.92), 32),
        Schedule("-20", -20, 0.0053, 0.00385, (0.63, 0.33, 0.85), 32),
    ),
)


class Watched(FedstillPolicy):
    """Remembers when whoever is refused is told so."""

    def __init__(self, profile: Profile, settings: FedstillSettings) -> None:
        super().__init__(profile, settings)
        self.delays: list[float] = []
        self.refusals: list[Rejection] = []

    def admit(self, query: Query, now: float) -> Rejection | None:
        refusal = super().admit(query, now)
        if refusal is not None:
            self.refusals.append(refusal)
            self.delays.append(now - query.arrival)
        return refusal

    def dispatch(self, now: float) -> Decision:
        decision = super().dispatch(now)
        self.delays += [now - query.arrival for query in decision.evicted]
        return decision


def flood(
    profile: Profile, settings: FedstillSettings, kinds: tuple[QueryKind, ...], times: float, seconds: float
) -> tuple[Watched, np.ndarray, float]:
    """Poisson arrivals at a multiple of the plain model's rate in batches of 8; an engine that scatters by 10 %.

    Returns the policy, the kind of every query's end, and the utility earned.
    """
    plain = next(one for one in profile.schedules if one.name == "0")
    rate = times * 8 / plain.seconds(8)
    load = draw_load(
        poisson(rate, seconds, np.random.default_rng(1)), profile.tasks, np.random.default_rng(2), kinds
    )
    policy = Watched(profile, settings)
    outcome = simulate(
        policy, load, as_queries(load), profile, np.random.default_rng(3), VirtualEngine(jitter=0.1)
    )
    return policy, outcome.kind, outcome.utility_earned(load)


@pytest.mark.parametrize(
    ("profile", "times"),
    [(thesis_profile(), 6), (thesis_profile(), 10), (CPU, 3), (CPU, 5), (CPU, 10)],
    ids=["gpu-6", "gpu-10", "cpu-3", "cpu-5", "cpu-10"],
)
def test_of_equal_queries_the_refused_are_told_early_and_no_answer_is_lost(
    profile: Profile, times: float
) -> None:
    policy, kinds, _ = flood(profile, FedstillSettings(), EQUAL, times, 8)
    assert len(policy.delays) > 0.1 * len(kinds)
    assert np.median(policy.delays) <= 0.2 * OBJECTIVE
    assert all(
        one.reason in ("overload", "too_late") and (one.retry_after_seconds > 0) == (one.reason == "overload")
        for one in policy.refusals
    )
    assert any(one.reason == "overload" for one in policy.refusals)
    assert np.sum(kinds == 3) <= 0.01 * np.sum(kinds <= 3)
    _, without, _ = flood(profile, FedstillSettings(room=math.inf), EQUAL, times, 8)
    assert np.sum(kinds == 1) >= 0.97 * np.sum(without == 1)


@pytest.mark.parametrize("times", [2, 5])
def test_of_unequal_queries_it_earns_as_much(times: float) -> None:
    *_, earned = flood(CPU, FedstillSettings(), TABLE_3_5, times, 20)
    *_, without = flood(CPU, FedstillSettings(room=math.inf), TABLE_3_5, times, 20)
    assert earned >= 0.98 * without


def busy_policy() -> FedstillPolicy:
    """The fast schedule takes 10 ms + 10 ms per query; a batch runs until about 0.03."""
    policy = FedstillPolicy(made_profile())
    policy.arrive(made_query(0, 0.0, 0.5), 0.0)
    assert policy.dispatch(0.0).batch is not None
    return policy


def admitted(policy: FedstillPolicy, now: float, count: int = 200, **query: float) -> list[Query]:
    """Those of many equal queries that it accepts."""
    made = [made_query(1000 + number, now, **{"latency": 0.5, **query}) for number in range(count)]
    return [one for one in made if policy.admit(one, now) is None]


def test_accepted_queries_whose_images_are_not_ready_fill_the_time_too() -> None:
    policy = busy_policy()
    accepted = admitted(policy, 0.01)
    # At most 0.45 s of 11.25 ms each, less what is left of the running batch.
    assert 30 < len(accepted) <= 40
    for one in accepted:
        policy.enqueue(one, 0.01)
    assert admitted(policy, 0.01) == []


def test_those_that_leave_make_room() -> None:
    policy = busy_policy()
    first = admitted(policy, 0.01)
    for one in first[:10]:
        policy.withdraw(one.identifier)
    assert 9 <= len(admitted(policy, 0.01)) <= 11


def test_those_that_expired_while_the_engine_stood_still_take_no_room() -> None:
    policy = busy_policy()
    for one in admitted(policy, 0.01):
        policy.enqueue(one, 0.01)
    assert (
        len(admitted(policy, 3.0)) > 30
    )  # the batch has not ended, and nobody has looked at the queue since


def test_a_better_query_is_accepted_where_a_poorer_one_is_not() -> None:
    policy = busy_policy()
    for one in admitted(policy, 0.01):
        policy.enqueue(one, 0.01)
    poor, rich = (made_query(5000 + place, 0.01, 0.5, utility) for place, utility in enumerate((0.9, 2.0)))
    refusal = policy.admit(poor, 0.01)
    assert refusal is not None
    assert (refusal.reason, refusal.retry_after_seconds > 0) == ("overload", True)
    assert policy.admit(rich, 0.01) is None


def test_an_idle_engine_takes_a_request_of_many_images_whole() -> None:
    policy = FedstillPolicy(made_profile())
    assert len(admitted(policy, 0.0, count=64)) == 64


def test_room_is_for_as_long_as_the_queries_can_wait() -> None:
    policy = busy_policy()
    patient = FedstillPolicy(made_profile(), replace(FedstillSettings(), room=0.5))
    patient.arrive(made_query(0, 0.0, 0.5), 0.0)
    assert patient.dispatch(0.0).batch is not None
    assert len(admitted(patient, 0.01)) < len(admitted(policy, 0.01))
    assert len(admitted(busy_policy(), 0.01, latency=1.0)) > 1.8 * len(admitted(busy_policy(), 0.01))
