"""When a device is due: at once if it needs a student, never twice for one cause, and whatever has been before."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedstill.cloud_server.journal.journal import Journal
from fedstill.cloud_server.journal.visit import (
    AFTER_REFUSAL,
    CHANGE_PAUSE,
    FAILED,
    KEPT,
    LONGEST_PAUSE,
    LOST,
    NEW,
    REFUSED,
    REFUSED_PAUSE,
    REGULAR,
    REPLACED,
    REQUESTED,
    SERVED,
    TEACHER,
    Seen,
    Visit,
    due,
)

HAS = "ab" * 32
LAST = Visit(3, 4, NEW, "hall", SERVED, student=HAS, started=1000.0, ended=1100.0)
ONLINE = Seen("hall", HAS)


@pytest.mark.parametrize("outcome", [SERVED, KEPT])
def test_a_served_device_is_left_alone(outcome: str) -> None:
    last = replace(LAST, outcome=outcome)
    assert due(last, ONLINE, 0.0, 1e9) is None
    assert due(last, ONLINE, 999.0, 1e9) is None  # asked before it was served
    lost = due(last, Seen("hall", ""), 0.0, 1e9)
    assert lost is not None
    assert lost.cause == LOST


@pytest.mark.parametrize(
    ("last", "seen", "asked", "now", "visit", "cause"),
    [
        (None, ONLINE, 0.0, 0.0, 0, NEW),
        (replace(LAST, outcome="", ended=None), ONLINE, 0.0, 0.0, 4, NEW),
        (LAST, Seen("hall-2", HAS), 0.0, 1200.0, 5, REPLACED),
        (LAST, Seen("hall", ""), 0.0, 1200.0, 5, LOST),
        (LAST, Seen("hall", "cd" * 32), 0.0, 1200.0, 5, LOST),
        (LAST, ONLINE, 1001.0, 1200.0, 5, REQUESTED),
        (replace(LAST, outcome=FAILED, attempts=1), ONLINE, 0.0, 1160.0, 4, NEW),
        (replace(LAST, outcome=FAILED, attempts=9), Seen("hall-2", ""), 0.0, 1101.0, 5, REPLACED),
        (replace(LAST, outcome=FAILED, attempts=9), ONLINE, 1001.0, 1101.0, 5, REQUESTED),
        (replace(LAST, outcome=REFUSED), ONLINE, 0.0, 1100.0 + REFUSED_PAUSE, 5, AFTER_REFUSAL),
    ],
)
def test_a_device_is_due(
    last: Visit | None, seen: Seen, asked: float, now: float, visit: int, cause: str
) -> None:
    found = due(last, seen, asked, now)
    assert found is not None
    assert (found.visit, found.cause) == (visit, cause)
    assert found.device == (seen.device if last is None or cause != NEW else last.device)


def test_a_new_student_after_a_time_if_an_operator_wants_that() -> None:
    month = 30 * 86_400.0
    assert due(LAST, ONLINE, 0.0, 1100.0 + month) is None
    assert due(LAST, ONLINE, 0.0, 1099.0 + month, every=month) is None
    found = due(LAST, ONLINE, 0.0, 1100.0 + month, every=month)
    assert found is not None
    assert (found.visit, found.cause) == (5, REGULAR)
    ahead = replace(LAST, ended=1e9)  # noted with a clock that was far ahead
    assert due(ahead, ONLINE, 0.0, 1200.0, every=month) is not None
    failed = replace(LAST, outcome=FAILED, attempts=1)
    assert due(failed, ONLINE, 0.0, 1110.0, every=1.0) is None, "a failure waits for its own pause"


@pytest.mark.parametrize("change", ["clips", "drift"])
def test_a_change_of_the_clips_is_a_cause_after_a_pause(change: str) -> None:
    changed = replace(ONLINE, change=change)
    assert due(LAST, changed, 0.0, 1099.0 + CHANGE_PAUSE) is None
    assert due(LAST, changed, 0.0, 1099.0 + CHANGE_PAUSE, scale=2.0) is None
    for now in (1100.0 + CHANGE_PAUSE, 900.0):  # or the clock was set back
        found = due(LAST, changed, 0.0, now)
        assert found is not None
        assert (found.visit, found.cause) == (5, change)
    lost = due(LAST, replace(changed, student=""), 0.0, 1200.0)
    assert lost is not None
    assert lost.cause == LOST, "who has no student does not wait"
    failed = replace(LAST, outcome=FAILED, attempts=9)
    assert due(failed, changed, 0.0, 1101.0) is None, "a failure waits for its own pause"


@pytest.mark.parametrize("outcome", ["", SERVED, FAILED, REFUSED])
def test_another_teacher_is_a_cause_at_once_whatever_became_of_the_last_visit(outcome: str) -> None:
    """What a device has told under the old one's student is not used again, so it is another visit."""
    last = replace(LAST, outcome=outcome, attempts=9)
    found = due(last, replace(ONLINE, change="drift"), 0.0, 1101.0, teacher=2)
    assert found is not None
    assert (found.visit, found.cause, found.teacher, found.outcome) == (5, TEACHER, 2, "")
    served = replace(found, client=3, outcome=SERVED, student=HAS, started=1101.0, ended=1102.0)
    assert due(served, ONLINE, 0.0, 1103.0, teacher=2) is None, "once"
    failed = replace(served, outcome=FAILED, attempts=1)
    assert due(failed, ONLINE, 0.0, 1103.0, teacher=2) is None, "a failure waits for its own pause"
    assert due(failed, ONLINE, 0.0, 1200.0, teacher=2) == failed
    new = due(None, ONLINE, 0.0, 0.0, teacher=2)
    assert new is not None
    assert (new.cause, new.teacher) == (NEW, 2)


def test_what_failed_is_tried_again_later_and_later() -> None:
    pauses = []
    for attempts in (1, 2, 3, 20, 10_000):
        again = replace(LAST, outcome=FAILED, attempts=attempts).next_attempt()
        assert again is not None
        pauses.append(again - 1100.0)
    assert pauses == [60, 120, 240, LONGEST_PAUSE, LONGEST_PAUSE]
    waiting = replace(LAST, outcome=FAILED, attempts=2)
    assert due(waiting, ONLINE, 0.0, 1219.0) is None
    assert due(waiting, ONLINE, 0.0, 1220.0) == waiting
    assert due(waiting, ONLINE, 0.0, 1160.0, scale=0.5) == waiting


pasts = st.builds(
    Visit,
    client=st.just(3),
    visit=st.integers(0, 1000),
    cause=st.sampled_from([NEW, LOST, REQUESTED]),
    device=st.sampled_from(["hall", "hall-2"]),
    outcome=st.sampled_from(["", SERVED, KEPT, FAILED, REFUSED]),
    student=st.sampled_from(["", HAS, "cd" * 32]),
    attempts=st.integers(0, 10**6),
    started=st.floats(0, 2e9),
    ended=st.none() | st.floats(0, 2e9),
    teacher=st.integers(1, 3),
)


@settings(deadline=None)
@given(past=st.none() | pasts,
       seen=st.sampled_from([ONLINE, Seen("hall", ""), Seen("hall-2", HAS), Seen("hall", HAS, "drift")]),
       asked=st.floats(0, 2e9), now=st.floats(0, 4e9), teacher=st.integers(1, 3))  # fmt: skip
def test_from_any_past_it_has_the_right_student_within_a_day(
    past: Visit | None, seen: Seen, asked: float, now: float, teacher: int
) -> None:
    """Whatever was noted before, also with a clock that was wrong then."""
    today = now + REFUSED_PAUSE
    for moment in (now, today):
        visit = due(past, seen, asked, moment, teacher=teacher)
        if visit is not None:
            break
    if visit is None:
        assert past is not None
        assert past.teacher == teacher
        if past.outcome in (SERVED, KEPT):
            assert (past.device, past.student, "") == (seen.device, seen.student, seen.change)
            return
        # noted with a clock that was ahead by more than a day: as soon as time has come, or the clock is right
        assert (past.ended or past.started) > today - REFUSED_PAUSE
        return
    served = replace(visit, client=3, outcome=SERVED, student=HAS, started=max(moment, asked), ended=moment)
    assert served.visit >= (past.visit if past else 0)
    assert served.teacher == teacher
    assert due(served, Seen(visit.device, HAS), asked, moment, teacher=teacher) is None, (
        "nobody is served twice for one cause"
    )


def test_visits_are_kept_and_the_newest_counts(journal: Journal) -> None:
    visits = journal.visits
    assert visits.newest() == {}
    first = visits.begin(Visit(3, 0, NEW, "hall"))
    assert visits.newest() == {3: first}
    assert (first.outcome, first.ended) == ("", None)
    failed = visits.end(first, FAILED, "no reply" * 1000, "")
    assert (failed.attempts, len(failed.reason)) == (1, 1000)
    again = visits.begin(failed)
    assert visits.newest() == {3: again}
    assert visits.end(again, FAILED, "no reply", "").attempts == 2
    served = visits.end(visits.begin(again), SERVED, "", HAS)
    other = visits.begin(Visit(0, 0, NEW, "kitchen"))
    second = visits.begin(Visit(3, 1, REQUESTED, "hall"))
    assert visits.newest() == {0: other, 3: second}
    assert served.attempts == 0
    assert visits.end(replace(served, attempts=3), KEPT, "no better one", HAS).attempts == 0


def test_a_request_with_a_date_in_the_future_is_one_visit(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    visits = journal.visits
    with monkeypatch.context() as ahead:
        ahead.setattr("time.time", lambda: 4e9)
        visits.ask([3])
    begun = visits.begin(Visit(3, 1, REQUESTED, "hall"))
    served = visits.end(begun, SERVED, "", HAS)
    assert due(served, ONLINE, visits.asked()[3], 2e9) is None


def test_the_newest_request_of_a_client_counts(journal: Journal) -> None:
    visits = journal.visits
    visits.ask([])
    assert visits.asked() == {}
    visits.ask([1, 3])
    before = visits.asked()
    visits.ask([3])
    after = visits.asked()
    assert set(before) == set(after) == {1, 3}
    assert after[1] == before[1]
    assert after[3] > before[3]
