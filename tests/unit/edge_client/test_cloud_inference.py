"""Every clip gets its answer: the cloud's in time, or the local head's, and it says which and why."""

from __future__ import annotations

import itertools
import runpy
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.inference import AUDIO, FRAMES, WIDTH, MadeRuntime

from fedstill.edge_client.inference.cloud_connection import PATIENCE, Reply, Ticket
from fedstill.edge_client.inference.cloud_inference import Classification, EdgeInference, NoAnswer
from fedstill.edge_client.inference.cloud_stream import Description
from fedstill.edge_client.inference.levels import CompressionLevel
from fedstill.edge_client.inference.link import LinkEstimate, LinkEstimator
from fedstill.edge_client.inference.route import Route
from fedstill.edge_client.students.runtime_api import FeatureArrays
from fedstill.models.audiovisual.compression import RATES

BENCHMARK = runpy.run_path(str(Path(__file__).parents[3] / "benchmarks" / "fleet" / "level_choice.py"))
CLOUD = np.array([0.1, 0.2, 0.7], np.float32)
ANSWER = Reply(CLOUD)
ECHO_BYTES = 30
STEP = 0.001


class Clock:
    """Time that passes only while a thread waits."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class VirtualTicket(Ticket):
    """A clip in flight on a :class:`VirtualLink`."""

    def __init__(self, size: int, link: VirtualLink, arrives: float) -> None:
        super().__init__(size, link.clock.now)
        self._link, self.arrives = link, arrives

    def wait(self, seconds: float) -> Reply | None:
        self._link.clock.now = min(self.arrives, self._link.clock.now + max(0.0, seconds))
        self._link.deliver()
        return super().wait(0)


class VirtualLink:
    """The part of a connection, over a trace of one-second moments, in virtual time; bytes queue in order."""

    def __init__(self, clock: Clock, trace: list[Any], reply: Reply = ANSWER) -> None:
        self.clock, self.description = clock, Description(WIDTH, RATES)
        self.reply = reply
        self.sent: list[str] = []
        self._trace = trace
        self._link = LinkEstimator()
        self._under_way: list[tuple[VirtualTicket, float]] = []
        self._free_at = 0.0
        self._link.echoed(self._arrival(ECHO_BYTES))

    @property
    def estimate(self) -> LinkEstimate:
        return self._link.estimate

    def hindrance(self) -> str:
        self.deliver()
        now = self.clock.now
        if not self.estimate.up:
            if self._link.attempt_in(now) > 0:
                return "link down"
            if not self._moment(now).bytes_per_second:
                self._link.failed(now)
                return "link down"
            self._link.echoed(2 * self._moment(now).delay)
        if not self._under_way:
            return ""
        if now - self._under_way[0][0].sent_at < PATIENCE:
            return "link busy"
        self._link.failed(now)
        self._under_way.clear()
        return "link down"

    def send(self, level: CompressionLevel, payload: bytes) -> Ticket:
        assert len(payload) == level.size
        self.sent.append(level.name)
        echo = self._arrival(ECHO_BYTES) - self.clock.now
        ticket = VirtualTicket(level.size, self, self._arrival(level.size))
        self._under_way.append((ticket, echo))
        return ticket

    def gave_up(self, ticket: Ticket) -> None:
        if any(one is ticket for one, _ in self._under_way):
            self._link.unanswered(ticket.size, self.clock.now - ticket.sent_at)

    def deliver(self) -> None:
        for ticket, echo in list(self._under_way):
            if ticket.arrives <= self.clock.now:
                self._under_way.remove((ticket, echo))
                self._link.echoed(echo)
                self._link.transferred(ticket.size, ticket.arrives - ticket.sent_at - echo)
                ticket.seconds = ticket.arrives - ticket.sent_at
                ticket.resolve(self.reply)

    def _moment(self, when: float) -> Any:
        return self._trace[min(int(when), len(self._trace) - 1)]

    def _arrival(self, size: int) -> float:
        """When ``size`` bytes that are sent now are answered: after what is queued, at the trace's pace."""
        when, left = max(self.clock.now, self._free_at), float(size)
        while left > 0:
            rate = self._moment(when).bytes_per_second
            if rate and left / rate <= STEP:
                when, left = when + left / rate, 0.0
            else:
                when, left = when + STEP, left - rate * STEP
            if when > len(self._trace) + 60:
                break
        self._free_at = when
        return when + 2 * self._moment(when).delay


def steady(bytes_per_second: float, delay: float = 0.02) -> list[Any]:
    return [BENCHMARK["Moment"]("steady", bytes_per_second, delay)]


def inference(link: VirtualLink | None, mode: str = "auto", **options: Any) -> EdgeInference:
    clock = link.clock if link else Clock()
    runtime = MadeRuntime(0.03, clock.sleep)
    return EdgeInference(runtime, link, mode, clock=clock, **options)  # type: ignore[arg-type]


def ask(
    inference: EdgeInference, times: int = 1, clock: Clock | None = None, pause: float = 0.3
) -> list[Classification]:
    answers = []
    for _ in range(times):
        answers.append(inference.classify(AUDIO, FRAMES))
        if clock:
            clock.sleep(pause)
    return answers


def test_local_mode_sends_nothing_and_equals_the_local_head() -> None:
    (answer,) = ask(inference(None, "local"))
    runtime = MadeRuntime()
    logits = runtime.logits(runtime.features(AUDIO, FRAMES))[0]
    np.testing.assert_allclose(answer.probabilities, np.exp(logits) / np.exp(logits).sum(), rtol=1e-5)
    assert (answer.route, answer.bytes) == (Route.local("local mode"), 0)
    assert (answer.route.path, answer.route.level_name) == ("local", "")
    assert answer.milliseconds == pytest.approx(30)


def test_a_good_link_is_used_with_the_best_level() -> None:
    link = VirtualLink(Clock(), steady(2.5e6))
    first, *_, last = ask(inference(link), 30, link.clock)
    assert (first.route.path, first.route.level_name, first.bytes) == ("cloud", "3 int8", 348)
    assert first.route.reason == ""
    assert (last.route.path, last.route.level_name, last.bytes) == ("cloud", "1 fp32", 4096)
    assert last.probabilities.tolist() == CLOUD.tolist()
    assert last.milliseconds == pytest.approx(30 + 40, abs=3)


def test_a_privacy_mode_that_forbids_uploads_sends_nothing() -> None:
    link = VirtualLink(Clock(), steady(2.5e6))
    answers = ask(inference(link, uploads_allowed=False), 3)
    assert {answer.route.reason for answer in answers} == {"privacy mode forbids uploads"}
    assert link.sent == []


def test_a_late_answer_is_replaced_by_the_local_one_by_the_deadline() -> None:
    link = VirtualLink(Clock(), [*steady(2.5e6) * 12, *steady(1000) * 100])
    answers = ask(inference(link), 60, link.clock)
    late = [answer for answer in answers if answer.route.reason == "no answer in time"]
    assert late
    assert {answer.route.path for answer in late} == {"local"}
    assert all(answer.milliseconds <= 300 for answer in answers)
    assert late[0].bytes == 4096  # they travelled, though in vain


def test_a_link_that_is_too_slow_is_tried_now_and_then_in_the_background() -> None:
    link = VirtualLink(Clock(), [*steady(400) * 40, *steady(2.5e6) * 60])
    answers = ask(inference(link), 200, link.clock)
    slow = [answer for answer in answers if answer.route.reason == "link too slow"]
    tried = [answer for answer in slow if answer.bytes]
    assert 2 <= len(tried) < len(slow) / 3
    assert all(answer.milliseconds < 31 for answer in slow)  # nobody waited for it
    assert answers[-1].route.path == "cloud"


@pytest.mark.parametrize(
    "reply", [Reply(None, "refused (student_version: unknown)"), Reply(None, "link down")]
)
def test_a_refusal_is_answered_locally_with_its_reason(reply: Reply) -> None:
    link = VirtualLink(Clock(), steady(2.5e6), reply)
    (answer,) = ask(inference(link))
    assert (answer.route.path, answer.route.reason) == ("local", reply.refusal)


def test_cloud_mode_fails_instead_of_answering_locally() -> None:
    link = VirtualLink(Clock(), steady(1000))
    (first,) = ask(inference(link, "cloud"))
    assert first.route.path == "cloud"  # 388 ms late, but it was told to
    refusing = VirtualLink(Clock(), steady(2.5e6), Reply(None, "refused (busy)"))
    with pytest.raises(NoAnswer, match="refused"):
        ask(inference(refusing, "cloud"))


def test_a_cloud_with_other_features_or_rates_is_not_asked() -> None:
    link = VirtualLink(Clock(), steady(2.5e6))
    link.description = Description(WIDTH // 2, RATES)
    assert "the cloud means 256 features" in ask(inference(link))[0].route.reason
    link.description = Description(WIDTH, (1.0,))
    levels = {answer.route.level_name for answer in ask(inference(link), 30, link.clock)}
    assert levels <= {"1 fp32", "1 fp16", "1 int8"}


def test_a_student_without_compressors_uses_rate_one_only() -> None:
    class Bare(MadeRuntime):
        def compress(self, features: FeatureArrays, rate: float) -> FeatureArrays:
            if rate != 1:
                raise ValueError(f"rate: {rate:g} has no compressor here")
            return features

    link = VirtualLink(Clock(), steady(2.5e6))
    ask(EdgeInference(Bare(), link, clock=link.clock), 30, link.clock)
    assert set(link.sent) == {"1 int8", "1 fp32"}


def test_features_that_no_encoder_makes_stay_here() -> None:
    class Broken(MadeRuntime):
        def features(self, audio: np.ndarray, frames: np.ndarray) -> FeatureArrays:
            return FeatureArrays(*np.full((2, 1, WIDTH), 1e6, np.float32))

    link = VirtualLink(Clock(), steady(2.5e6))
    answer = EdgeInference(Broken(), link, clock=link.clock).classify(AUDIO, FRAMES)
    assert (answer.route.path, answer.route.reason) == ("local", "features: a value beyond 65504")
    assert link.sent == []


@pytest.mark.parametrize(
    ("mode", "options", "why"),
    [
        ("cloud", {"uploads_allowed": False}, "privacy mode forbids"),
        ("auto", {"objective_ms": 0.0}, "objective_ms"),
        ("auto", {"objective_ms": float("nan")}, "objective_ms"),
    ],
)
def test_combinations_that_make_no_sense(mode: str, options: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        inference(VirtualLink(Clock(), steady(1e6)), mode, **options)
    with pytest.raises(ValueError, match="needs a cloud"):
        inference(None, "auto")


@pytest.mark.parametrize("clips_per_second", [1.0, 3.0, 10.0])
def test_the_committed_trace_in_virtual_time(clips_per_second: float) -> None:
    """At least 99 % of clips within 300 ms or local, at most one change of the level per 5 s."""
    trace = BENCHMARK["read_trace"](BENCHMARK["TRACE"])
    clock = Clock()
    link, tally = VirtualLink(clock, trace), BENCHMARK["Tally"]()
    device = inference(link)
    for number in itertools.count():
        clock.now = max(clock.now, number / clips_per_second)
        if clock.now >= len(trace):
            break
        segment = trace[int(clock.now)].segment
        tally.add(clock.now, segment, device.classify(AUDIO, FRAMES))
    assert tally.kept >= 0.99
    assert tally.in_time >= 0.99
    assert tally.most_changes <= 1
    paths = {
        segment: Counter(answer.route.path for _, found, answer in tally.clips if found == segment)
        for segment in ("good", "64 kbit/s", "outage", "good again")
    }
    assert set(paths["outage"]) == {"local"}
    for segment in ("good", "64 kbit/s", "good again"):  # the cloud is used where it can be
        assert paths[segment]["cloud"] >= 0.6 * paths[segment].total(), segment


def test_the_same_trace_gives_the_same_answers() -> None:
    def run() -> list[tuple[str, str]]:
        link = VirtualLink(Clock(), BENCHMARK["read_trace"](BENCHMARK["TRACE"]))
        return [
            (answer.route.path, answer.route.level_name) for answer in ask(inference(link), 200, link.clock)
        ]

    assert run() == run()
