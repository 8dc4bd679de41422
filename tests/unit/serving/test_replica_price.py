"""Which replica gets a query, by the figures that replicas publish; how many replicas pay for themselves."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedstill.cloud_server.serving.scheduling.price import (
    SILENT_SECONDS,
    AskedQuery,
    Figures,
    Offer,
    Standings,
    net_earning,
    plain_figures,
    read_figures,
    wanted_replicas,
)

CHOICES = ((0.01, 0.6), (0.02, 0.8))
IDLE = Figures(1, 0.0, 0.0, 0.0, {"cats": Offer(1.0, 500.0, CHOICES)})
CATS = AskedQuery("cats")


def heard(now: float = 0.0, **replicas: Figures) -> Standings:
    standings = Standings(Random(0))
    for name, figures in replicas.items():
        standings.hear(name, plain_figures(figures), now)
    return standings


def test_figures_travel_as_plain_values() -> None:
    plain = json.loads(json.dumps(plain_figures(IDLE)))
    assert read_figures(plain) == IDLE


def test_a_query_earns_its_best_answer_in_time_less_its_seconds_at_the_price() -> None:
    assert net_earning(IDLE, CATS, 0.0) == pytest.approx(0.8)
    dear = replace(IDLE, price=30.0)
    assert net_earning(dear, CATS, 0.0) == pytest.approx(max(0.6 - 0.3, 0.8 - 0.6))
    assert net_earning(IDLE, CATS, 0.485) == pytest.approx(0.6)  # the accurate one would be late
    assert net_earning(IDLE, CATS, 0.6) == 0.0
    assert net_earning(IDLE, AskedQuery("cats", utility=3.0), 0.0) == pytest.approx(2.4)
    assert net_earning(IDLE, AskedQuery("cats", seconds=0.015), 0.0) == pytest.approx(0.6)
    assert net_earning(IDLE, AskedQuery("cats", seconds=9.0, most=0.015), 0.0) == pytest.approx(0.6)
    assert net_earning(IDLE, AskedQuery("cats", most=9.0), 0.6) == 0.0  # of both limits the shorter one
    assert net_earning(IDLE, AskedQuery("cats", factor=4.0), 0.0) == pytest.approx(3.2)
    assert net_earning(IDLE, AskedQuery("dogs"), 0.0) == -math.inf


def test_what_any_replica_offers_is_known() -> None:
    standings = heard(a=replace(IDLE, offers={}), b=IDLE)
    assert standings.offer("cats") == IDLE.offers["cats"]
    assert standings.offer("dogs") is None


@pytest.mark.parametrize("nonsense", [math.nan, math.inf, -math.inf])
def test_a_query_whose_worth_makes_no_sense_goes_to_the_least_busy_replica(nonsense: float) -> None:
    standings = heard(a=replace(IDLE, backlog=0.1), b=IDLE)
    for query in (AskedQuery("cats", utility=nonsense), AskedQuery("cats", nonsense, nonsense)):
        assert standings.order(["a", "b"], query, 0.0) == ["b", "a"]


def test_the_cheaper_replica_the_emptier_and_the_faster_one_are_preferred() -> None:
    slow = replace(IDLE, offers={"cats": Offer(1.0, 500.0, ((0.3, 0.6), (0.6, 0.8)))})
    for worse in (replace(IDLE, price=50.0), replace(IDLE, backlog=0.49), slow):
        assert heard(a=worse, b=IDLE).order(["a", "b"], CATS, 0.0) == ["b", "a"]


def test_what_was_sent_since_counts_so_that_equal_replicas_share() -> None:
    standings = heard(a=IDLE, b=IDLE)
    counts = {"a": 0, "b": 0}
    for _ in range(100):
        first = standings.order(["a", "b"], CATS, 0.0)[0]
        standings.sent(first, CATS)
        counts[first] += 1
    assert counts == {"a": 50, "b": 50}


def test_many_routers_with_the_same_old_figures_do_not_all_choose_the_same() -> None:
    same = {name: replace(IDLE, price=price) for name, price in (("a", 1.0), ("b", 1.2), ("c", 1.4))}
    chosen = set()
    for seed in range(20):
        router = heard(**same)
        router.random = Random(seed)
        chosen.add(router.order(["a", "b", "c"], CATS, 1.0)[0])
    assert len(chosen) > 1


def test_a_call_that_asks_no_model_goes_to_the_same_replica_each_time() -> None:
    standings = heard(b=IDLE, a=replace(IDLE, price=9.0))
    assert {tuple(standings.order(["b", "a"], None, 0.0)) for _ in range(5)} == {("a", "b")}


@pytest.mark.parametrize("nonsense", [
    {}, None, [], "x", {"serial": 2}, {**plain_figures(IDLE), "serial": 2, "price": math.nan},
    {**plain_figures(IDLE), "serial": 2, "backlog": -1.0}, {**plain_figures(IDLE), "serial": 2, "price": math.inf},
    {**plain_figures(IDLE), "serial": 2, "offers": {"cats": 1}},
])  # fmt: skip
def test_figures_that_make_no_sense_are_as_good_as_silence(nonsense: object) -> None:
    standings = heard(a=IDLE, b=IDLE)
    later = SILENT_SECONDS + 0.1
    standings.hear("a", nonsense, later)
    standings.hear("b", plain_figures(replace(IDLE, serial=2, price=9.0)), later)
    assert standings.order(["a", "b"], CATS, later) == ["b"]


amounts = st.floats(0.0, 1e6)
shares = st.floats(0.0, 1.0)
offers = st.builds(
    Offer,
    utility=st.floats(0.0, 100.0),
    latency_ms=st.floats(1.0, 1e4),
    choices=st.lists(st.tuples(st.floats(1e-4, 10.0), shares), min_size=1, max_size=3).map(tuple),
)
pasts = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c"]),
        st.builds(
            Figures,
            serial=st.integers(1, 100),
            price=amounts,
            backlog=amounts,
            busy=shares,
            offers=st.dictionaries(st.sampled_from(["cats", "dogs"]), offers),
        ),
        st.floats(0.0, 5.0),
        st.integers(0, 20),
    ),
    max_size=12,
)


def after(past: list[tuple[str, Figures, float, int]]) -> tuple[Standings, float]:
    """A router with a past, and the time."""
    standings, now = Standings(Random(1)), 0.0
    for name, figures, pause, queries in past:
        standings.hear(name, plain_figures(figures), now)
        for _ in range(queries):
            standings.sent(standings.order(["a", "b", "c"], CATS, now)[0], CATS)
        now += pause
    return standings, now


@settings(max_examples=40, deadline=None)
@given(pasts)
def test_a_silent_replica_gets_nothing_after_a_while_and_work_again_once_it_speaks(past: list) -> None:
    standings, now = after(past)
    standings.hear("c", plain_figures(replace(IDLE, serial=999)), now)
    for tick in range(8):
        now += SILENT_SECONDS / 4
        for name in ("a", "b"):
            standings.hear(name, plain_figures(replace(IDLE, serial=1000 + tick)), now)
    assert "c" not in standings.order(["a", "b", "c"], CATS, now)
    standings.hear("c", plain_figures(replace(IDLE, serial=2000)), now)
    crowded = replace(IDLE, serial=3000, backlog=10.0)
    for name in ("a", "b"):
        standings.hear(name, plain_figures(crowded), now)
    assert standings.order(["a", "b", "c"], CATS, now)[0] == "c"


@settings(max_examples=40, deadline=None)
@given(pasts)
def test_somebody_always_gets_the_query(past: list) -> None:
    standings, now = after(past)
    assert standings.order(["a", "b", "c"], CATS, now + 1e6)[0] in ("a", "b", "c")
    assert standings.order(["d"], CATS, now) == ["d"]
    assert standings.order([], CATS, now) == []


@settings(max_examples=50, deadline=None)
@given(past=pasts, price=st.floats(0.0, 1e3), backlog=st.floats(0.0, 10.0), seed=st.integers(0, 9))
def test_an_idle_replica_is_never_passed_over_for_one_that_would_refuse(
    past: list, price: float, backlog: float, seed: int
) -> None:
    """Whatever was before: after one publication of each."""
    standings, now = after(past)
    standings.random = Random(seed)
    busy = replace(IDLE, serial=1001, price=price, backlog=backlog)
    for name, figures in (("a", busy), ("b", replace(IDLE, serial=1001)), ("c", busy)):
        standings.hear(name, plain_figures(figures), now)
    first = standings.order(["a", "b", "c"], CATS, now)[0]
    assert first == "b" or net_earning(busy, CATS, backlog) > 0


@settings(max_examples=40, deadline=None)
@given(pasts)
def test_any_past_is_forgotten_with_the_next_figures(past: list) -> None:
    standings, now = after(past)
    fresh = Standings(Random(7))
    standings.random = Random(7)
    for router in (standings, fresh):
        for number, name in enumerate(("a", "b", "c")):
            router.hear(name, plain_figures(replace(IDLE, serial=1001, price=float(number))), now)
    for _ in range(10):
        chosen = [router.order(["a", "b", "c"], CATS, now)[0] for router in (standings, fresh)]
        assert chosen[0] == chosen[1]
        for router in (standings, fresh):
            router.sent(chosen[0], CATS)


def test_a_replica_that_is_gone_is_forgotten() -> None:
    standings = heard(a=replace(IDLE, backlog=100.0), b=IDLE)
    standings.forget_others(["b"])
    assert standings.order(["a", "b"], CATS, 0.0)[0] == "b"  # as new, it has said nothing yet


def test_replicas_are_added_while_time_earns_more_than_it_costs() -> None:
    assert wanted_replicas(2, [5.0, 5.0], [1.0, 1.0], cost=1.0) == 3
    assert wanted_replicas(2, [0.5, 0.5], [1.0, 1.0], cost=1.0) == 2


def test_a_replica_is_taken_away_when_the_others_have_room_for_all() -> None:
    assert wanted_replicas(3, [0.0] * 3, [0.4] * 3, cost=0.0) == 2
    assert wanted_replicas(3, [0.0] * 3, [0.6] * 3, cost=0.0) == 3
    assert wanted_replicas(3, [0.0] * 2, [0.1] * 2, cost=0.0) == 2
    assert wanted_replicas(2, [0.0], [0.0], cost=0.0) == 2  # the other one has just started
    assert wanted_replicas(1, [0.0], [0.0], cost=0.0) == 1


@given(st.integers(0, 50), st.lists(amounts, max_size=5), st.lists(shares, max_size=5), st.floats(0.0, 1e3))
def test_the_number_moves_by_one_and_never_below_one(
    running: int, prices: list[float], busy: list[float], cost: float
) -> None:
    wanted = wanted_replicas(running, prices, busy, cost)
    assert wanted >= 1
    assert abs(wanted - max(1, running)) <= 1


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.0, 30.0), min_size=1, max_size=30), st.floats(0.0, 5.0))
def test_replicas_do_not_flicker_under_a_steady_load(loads: list[float], cost: float) -> None:
    """Time is scarce while replicas are fewer than the load: then it has a price, else none."""
    running = 1
    for load in [*loads, *[loads[-1]] * 60]:
        price = 10.0 if load >= running else 0.0
        running = wanted_replicas(running, [price] * running, [min(1.0, load / running)] * running, cost)
    settled = [running]
    for _ in range(5):
        price = 10.0 if loads[-1] >= running else 0.0
        busy = [min(1.0, loads[-1] / running)] * running
        running = wanted_replicas(running, [price] * running, busy, cost)
        settled.append(running)
    assert len(set(settled)) == 1
