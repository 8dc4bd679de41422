"""A query's deadline is the shortest of what is said, its worth is scaled by its priority, its version is true."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest

from fedstill.cloud_server.grpc.request_error import RequestError
from fedstill.cloud_server.serving.callers.call import begin
from fedstill.cloud_server.serving.callers.rate_limits import Rate, RateLimits
from fedstill.cloud_server.serving.endpoints.infer_parameters import LEVELS, priority_factor
from fedstill.cloud_server.serving.endpoints.infer_request import Limits
from fedstill.cloud_server.serving.endpoints.model_names import AskedTask
from fedstill.cloud_server.serving.endpoints.task_queries import TaskQueries
from fedstill.cloud_server.serving.endpoints.task_statistics import TaskStatistics
from fedstill.cloud_server.serving.engine.predictions import Prediction
from fedstill.cloud_server.serving.scheduling.queries import Rejection
from fedstill.cloud_server.serving.server.requests import Outcome, Response
from fedstill.cloud_server.serving.tasks.registry import TaskVersion

CATS = TaskVersion("cats", 2, ("a", "b"), "0" * 64, "", (), 600.0, 0.5, 0.9, "", True)
ANSWER = Response((Prediction(np.zeros(2, np.float32), ("a", "b")),), ("0",), (2,), 0.1, 0.2, 1, False)


class Dispatcher:
    """Answers at once, and keeps what it was asked."""

    draining = False

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome
        self.seconds = self.utility = 0.0

    def submit(self, task: str, images: Any, seconds: float, utility: float, deliver: Any, _: Any) -> None:
        self.seconds, self.utility = seconds, utility
        deliver(self._outcome)


def ask(
    limits: Limits, outcome: Outcome = ANSWER, task: AskedTask | None = None
) -> tuple[Dispatcher, TaskStatistics, Response]:
    dispatcher, statistics = Dispatcher(outcome), TaskStatistics()
    tasks: Any = SimpleNamespace(served={"cats": CATS})
    queries = TaskQueries(dispatcher, tasks, statistics, 32)  # type: ignore[arg-type]
    served = asyncio.run(queries.ask(task or AskedTask("cats"), [lambda: None], limits))
    return dispatcher, statistics, served


def refusal(limits: Limits, outcome: Outcome = ANSWER, task: AskedTask | None = None) -> RequestError:
    with pytest.raises(RequestError) as caught:
        ask(limits, outcome, task)
    return caught.value


@pytest.mark.parametrize(
    ("limits", "milliseconds", "limit"),
    [
        (Limits(), 600, "latency_ms"),
        (Limits(latency_ms=900), 900, "latency_ms"),
        (Limits(timeout_ms=50), 50, "timeout"),
        (Limits(timeout_ms=700), 600, "latency_ms"),
        (Limits(latency_ms=900, timeout_ms=700), 700, "timeout"),
        (Limits(remaining_ms=40), 40, "the call's deadline"),
        (Limits(latency_ms=30, timeout_ms=20, remaining_ms=10), 10, "the call's deadline"),
        (Limits(latency_ms=10, timeout_ms=20, remaining_ms=30), 10, "latency_ms"),
        (Limits(remaining_ms=-5), -5, "the call's deadline"),
    ],
)
def test_the_deadline_is_the_shortest_limit_and_a_refusal_names_it(
    limits: Limits, milliseconds: float, limit: str
) -> None:
    dispatcher, _, _ = ask(limits)
    assert dispatcher.seconds == pytest.approx(milliseconds / 1e3)
    error = refusal(limits, Rejection("evicted", message="too late"))
    assert (error.code, error.field, str(error)) == (grpc.StatusCode.DEADLINE_EXCEEDED, limit, "too late")


def test_priority_doubles_the_utility_for_each_level_and_0_changes_nothing() -> None:
    factors = [priority_factor(level) for level in range(1, LEVELS + 1)]
    assert factors == [4.0, 2.0, 1.0, 0.5, 0.25]
    assert [priority_factor(level) for level in (None, 0.0, LEVELS + 1.0, 2.0**60)] == [1.0] * 4
    assert ask(Limits(factor=4.0))[0].utility == 2.0
    assert ask(Limits(factor=4.0, utility=3.0))[0].utility == 12.0


def test_an_answer_of_another_version_than_asked_for_is_refused() -> None:
    assert ask(Limits(), task=AskedTask("cats", 2))[2] is ANSWER
    assert ask(Limits(), replace(ANSWER, versions=(1,)))[2].versions == (1,)  # any will do
    error = refusal(Limits(), replace(ANSWER, versions=(2, 3)), AskedTask("cats", 2))
    assert (error.code, error.field) == (grpc.StatusCode.NOT_FOUND, "model_version")
    assert str(error) == "2 was replaced by 3 while the query waited: ask again"


def test_images_that_were_answered_with_other_classes_make_no_answer() -> None:
    three = Prediction(np.zeros(3, np.float32), ("a", "b", "c"))
    mixed = replace(ANSWER, predictions=(*ANSWER.predictions, three), schedules=("0", "0"), versions=(2, 3))
    error = refusal(Limits(), mixed)
    assert error.code is grpc.StatusCode.UNAVAILABLE
    assert "other classes" in str(error)


def test_names_of_clients_do_not_fill_the_statistics() -> None:
    statistics = TaskStatistics()
    tasks: Any = SimpleNamespace(served={"cats": CATS})
    dispatcher: Any = Dispatcher(Rejection("unknown_task", message="no"))
    queries = TaskQueries(dispatcher, tasks, statistics, 32)
    for number in range(20):
        with pytest.raises(RequestError):
            asyncio.run(queries.ask(AskedTask(f"made up {number}"), [lambda: None], Limits()))
    assert statistics._tasks == {}


def test_a_hint_to_try_again_is_rounded_up() -> None:
    error = refusal(Limits(), Rejection("overload", 0.0101, "busy"))
    assert (error.code, error.retry_milliseconds) == (grpc.StatusCode.RESOURCE_EXHAUSTED, 11)


def test_a_retry_hint_is_a_day_at_most() -> None:
    limits = RateLimits({"shop": Rate(1e-300, 1)}, clock=lambda: 0.0)
    tasks: Any = SimpleNamespace(served={"cats": CATS})
    queries = TaskQueries(Dispatcher(ANSWER), tasks, TaskStatistics(), 32, limits)  # type: ignore[arg-type]

    async def ask_twice() -> RequestError:
        begin("").node = "shop"
        asked = AskedTask("cats"), [lambda: None], Limits()
        await queries.ask(*asked)
        with pytest.raises(RequestError) as caught:
            await queries.ask(*asked)
        return caught.value

    refused = asyncio.run(ask_twice())
    assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert refused.retry_milliseconds == 24 * 3600 * 1000
