"""Compute slots: no more jobs at a time than slots; a stopped run ends its jobs where they wait."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from fedstill.cloud_server.federation.slots import ComputeSlots, Stopped


def test_a_job_that_waits_for_its_device_gives_its_slot_up() -> None:
    slots, other = ComputeSlots(1), threading.Event()

    def compute() -> None:
        with slots.held():
            other.set()

    with ThreadPoolExecutor(1) as pool, slots.held():
        waiting = pool.submit(compute)
        assert not other.wait(0.1)
        with slots.given_up():
            waiting.result(10)
    assert other.is_set()


def test_a_job_whose_device_has_answered_comes_before_one_that_has_not_begun() -> None:
    slots, order = ComputeSlots(1), list[str]()
    asked, answered = threading.Event(), threading.Event()

    def begun() -> None:
        with slots.held():
            with slots.given_up():
                asked.set()
                answered.wait(10)
            order.append("answered")

    def new() -> None:
        with slots.held():
            order.append("new")

    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(begun)]
        asked.wait(10)
        with slots.held():
            jobs += [pool.submit(new) for _ in range(3)]
            time.sleep(0.1)  # they are waiting now
            answered.set()
            time.sleep(0.1)
        for job in jobs:
            job.result(10)
    assert order == ["answered", "new", "new", "new"]


def test_a_stopped_run_computes_nothing_more_and_keeps_the_answer_that_is_on_its_way() -> None:
    slots = ComputeSlots(1)
    with slots.held():
        with slots.given_up():
            slots.stop()
            answer = "arrived meanwhile"
        assert answer
        with pytest.raises(Stopped), slots.given_up():
            raise AssertionError("asks a device after the end")
    with pytest.raises(Stopped), slots.held():
        raise AssertionError("computes after the end")


def test_all_who_wait_for_a_slot_end_when_the_run_is_stopped() -> None:
    slots = ComputeSlots(1)

    def compute() -> str:
        try:
            with slots.held():
                return "computed"
        except Stopped:
            return "ended"

    with ThreadPoolExecutor(8) as pool:
        with slots.held():
            waiting = [pool.submit(compute) for _ in range(8)]
            slots.stop()
        assert [one.result(10) for one in waiting] == ["ended"] * 8
