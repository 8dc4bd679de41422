"""The rules for every policy, and the purpose of each."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.queries import ON_THESIS, made_profile, made_query
from hypothesis import given, settings
from hypothesis import strategies as st

from fedstill.cloud_server.serving.policies.fedstill import FedstillPolicy, FedstillSettings
from fedstill.cloud_server.serving.policies.registry import LABELS, POLICIES, make_policy
from fedstill.cloud_server.serving.scheduling.policy import Policy
from fedstill.cloud_server.serving.scheduling.profile import Profile
from fedstill.cloud_server.serving.scheduling.queries import Batch, Query
from fedstill.cloud_server.serving.scheduling.thesis_profile import thesis_profile
from fedstill.common.errors import DataError

THESIS = thesis_profile()
QUERIES = st.lists(
    st.tuples(
        st.floats(0.0, 0.5),  # arrival
        st.floats(0.0, 1.0),  # latency objective
        st.sampled_from([0.0, 0.01, 0.2, 1.0]),  # utility
        st.integers(0, 2),  # task
    ),
    min_size=1,
    max_size=120,
)


def filled(policy: Policy, drawn: list[tuple[float, float, float, int]]) -> dict[int, Query]:
    """Let the queries arrive; those that were accepted, by identifier."""
    accepted = {}
    for identifier, (arrival, latency, utility, task) in enumerate(sorted(drawn)):
        query = made_query(identifier, arrival, latency, utility, task)
        if policy.arrive(query, arrival) is None:
            accepted[identifier] = query
    return accepted


def test_a_deadline_that_is_now_has_expired() -> None:
    policy = make_policy("fedstill", THESIS)
    policy.arrive(made_query(0, 0.0, 1.0), 0.0)
    decision = policy.dispatch(1.0)
    assert decision.batch is None
    assert len(decision.evicted) == 1


@pytest.mark.parametrize("name", ON_THESIS)
@settings(max_examples=40, deadline=None)
@given(drawn=QUERIES, now=st.floats(0.5, 1.5))
def test_no_dispatched_batch_is_late_under_its_own_predictor(
    name: str, drawn: list[tuple[float, float, float, int]], now: float
) -> None:
    """So no expired query is ever run either, let alone before a live one.

    Only an engine that has been idle for long may try a query against what is expected (test_recovery.py); this one has
    just run a batch.
    """
    policy = make_policy(name, THESIS)
    accepted = filled(policy, drawn)
    policy.completed(Batch((), THESIS.fastest, 0.01), now, 0.01)
    decision = policy.dispatch(now)
    if decision.batch is None:
        assert policy.queued() + len(decision.evicted) == len(accepted)
        return
    batch = decision.batch
    assert 1 <= len(batch.queries) <= batch.schedule.maximum_batch
    deadline = min(query.deadline for query in batch.queries)
    assert now + batch.predicted_seconds <= deadline + 1e-9
    fates = [query.identifier for query in (*batch.queries, *decision.evicted)]
    assert len(set(fates)) == len(fates)
    assert policy.queued() + len(fates) == len(accepted)


@pytest.mark.parametrize("name", ON_THESIS)
def test_an_expired_request_never_outranks_a_live_one(name: str) -> None:
    """However valuable: the live one runs, the expired one is evicted in the same decision."""
    policy = make_policy(name, THESIS)
    assert policy.arrive(made_query(0, 0.0, 0.2, utility=1000.0), 0.0) is None
    assert policy.arrive(made_query(1, 0.1, 2.0, utility=0.01), 0.1) is None
    decision = policy.dispatch(0.3)
    assert decision.batch is not None
    assert [query.identifier for query in decision.batch.queries] == [1]
    assert [query.identifier for query in decision.evicted] == [0]
    assert policy.queued() == 0


@pytest.mark.parametrize("name", ON_THESIS)
def test_an_idle_policy_with_servable_queries_runs_something(name: str) -> None:
    policy = make_policy(name, THESIS)
    for identifier in range(40):
        policy.arrive(made_query(identifier, 0.0, 0.9, 0.2, identifier % 3), 0.0)
    assert policy.dispatch(0.0).batch is not None


@pytest.mark.parametrize("name", ON_THESIS)
def test_a_withdrawn_query_is_gone(name: str) -> None:
    policy = make_policy(name, THESIS)
    for identifier in range(3):
        policy.arrive(made_query(identifier, 0.0, 0.9), 0.0)
    taken = policy.withdraw(1)
    assert taken is not None
    assert taken.identifier == 1
    assert policy.withdraw(1) is None
    assert policy.queued() == 2
    batch = policy.dispatch(0.0).batch
    assert batch is not None
    assert 1 not in {query.identifier for query in batch.queries}


@pytest.mark.parametrize("name", ON_THESIS)
def test_a_policy_survives_withdrawing_its_whole_queue(name: str) -> None:
    policy = make_policy(name, THESIS)
    for identifier in range(3):
        policy.arrive(made_query(identifier, 0.0, 0.9), 0.0)
    for identifier in range(3):
        assert policy.withdraw(identifier) is not None
    assert policy.dispatch(0.0).batch is None


def test_every_policy_has_a_label() -> None:
    assert set(LABELS) == set(POLICIES)


def test_an_unknown_policy_is_named_with_the_known_ones() -> None:
    with pytest.raises(DataError, match=r"unknown policy 'otas' \(known: pets, infaas"):
        make_policy("otas", THESIS)


def test_a_fixed_policy_needs_its_schedule() -> None:
    with pytest.raises(DataError, match="no schedule with token delta 8"):
        make_policy("vpt8", made_profile())


def test_infaas_needs_variants() -> None:
    profile = made_profile()
    bare = Profile(profile.name, profile.source, profile.tasks, profile.schedules)
    with pytest.raises(DataError, match="has no variants"):
        make_policy("infaas", bare)


def test_infaas_chooses_the_model_by_the_load() -> None:
    """Full batches: large 8 / 0.41 = 19.5, small 160 queries per second."""
    calm, busy = make_policy("infaas", made_profile()), make_policy("infaas", made_profile())
    for identifier in range(10):
        calm.arrive(made_query(identifier, 0.1 * identifier, 9.0), 0.1 * identifier)
    for identifier in range(100):
        busy.arrive(made_query(identifier, 0.01 * identifier, 9.0), 0.01 * identifier)
    chosen = [policy.dispatch(1.0).batch for policy in (calm, busy)]
    assert [batch.schedule.name for batch in chosen if batch] == ["large", "small"]


def test_clipper_fits_the_batch_into_the_most_urgent_deadline() -> None:
    """Token delta 0 takes 20 + 20 n ms: 70 ms leave room for two of five."""
    policy = make_policy("clipper", made_profile())
    for identifier in range(5):
        policy.arrive(made_query(identifier, 0.0, 0.07 if identifier == 4 else 1.0), 0.0)
    batch = policy.dispatch(0.0).batch
    assert batch is not None
    assert [query.identifier for query in batch.queries] == [4, 0]


def test_slackfit_takes_the_accurate_schedule_with_slack_and_the_fast_one_without() -> None:
    names = []
    for latency in (0.9, 0.063):
        policy = make_policy("slackfit", made_profile())
        for identifier in range(8):
            policy.arrive(made_query(identifier, 0.0, latency), 0.0)
        batch = policy.dispatch(0.0).batch
        assert batch is not None
        names.append(batch.schedule.name)
    assert names == ["slow", "fast"]


def overloaded() -> FedstillPolicy:
    """A policy that has seen 2000 valuable queries within a second and has set its price."""
    policy = FedstillPolicy(THESIS)
    for identifier in range(2000):
        policy.arrive(made_query(identifier, identifier / 2000, 0.6, 1.0, 1), identifier / 2000)
    policy.dispatch(1.0)
    return policy


def test_fedstill_turns_away_what_cannot_pay_and_accepts_what_can() -> None:
    policy = overloaded()
    assert policy.price > 0
    poor = policy.arrive(made_query(9000, 1.0, 1.0, 0.01), 1.0)
    assert poor is not None
    assert poor.reason == "overload"
    assert poor.retry_after_seconds > 0
    assert policy.arrive(made_query(9001, 1.0, 0.9, 5.0), 1.0) is None


def test_fedstill_says_at_once_that_it_is_too_late() -> None:
    policy = overloaded()
    answer = policy.arrive(made_query(9000, 1.0, 0.001, 100.0), 1.0)
    assert answer is not None
    assert (answer.reason, answer.retry_after_seconds) == ("too_late", 0.0)


def test_fedstill_charges_nothing_and_takes_the_best_schedule_when_idle() -> None:
    policy = FedstillPolicy(THESIS)
    policy.arrive(made_query(0, 0.0, 0.9, 0.01, 0), 0.0)
    batch = policy.dispatch(0.0).batch
    assert policy.price == 0
    assert batch is not None
    assert batch.schedule.name == "+8"


def test_fedstill_learns_that_the_engine_became_slow() -> None:
    """After batches that take four times as long it stops choosing schedules that would be late."""
    policy, now = FedstillPolicy(THESIS), 0.0
    for identifier in range(30):
        policy.arrive(made_query(identifier, now, 0.9), now)
        batch = policy.dispatch(now).batch
        assert batch is not None
        seconds = 4 * batch.schedule.seconds(1)
        now += seconds
        policy.completed(batch, now, seconds)
    assert policy.latency.scale == pytest.approx(4, rel=0.1)
    policy.arrive(made_query(99, now, 0.049, 1.0), now)  # +8 would take 50.3 ms
    batch = policy.dispatch(now).batch
    assert batch is not None
    assert 4 * batch.schedule.seconds(1) <= 0.049


def test_fedstill_keeps_utilities_of_any_size_apart() -> None:
    """Continuous utilities, as in a live server: lines stay few and nothing is lost."""
    policy = FedstillPolicy(THESIS, FedstillSettings(patience=float("inf")))
    utilities = np.random.default_rng(0).lognormal(0, 2, 500)
    for identifier, utility in enumerate(utilities.tolist()):
        assert policy.arrive(made_query(identifier, 0.0, 0.9, utility), 0.0) is None
    assert policy.queued() == 500
    batch = policy.dispatch(0.0).batch
    assert batch is not None
    assert min(query.utility for query in batch.queries) > np.median(utilities)
