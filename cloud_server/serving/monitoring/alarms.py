"""What an operator should look at: the conditions of ``deploy/prometheus/serve_alerts.yaml``, from the own history.

A Prometheus that scrapes several servers keeps more history and sends messages; the page shows the same without one. A
test holds both to the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from fedstill.cloud_server.serving.monitoring.recorder import Refusing
from fedstill.cloud_server.serving.monitoring.tally import Key

Severity = Literal["critical", "warning", "info"]
IDLE_SECONDS = 60.0
"""Longer than any pause after which an idle engine tries a query against what it expects
(``policies/trunk_times.py``)."""


class Facts(Protocol):
    """What conditions look at. Implemented by ``Monitor``."""

    @property
    def tasks(self) -> Sequence[str]:
        """Names of the served ones."""

    @property
    def memory(self) -> tuple[float, float]:
        """Bytes of the process, and how many it may have."""

    def total(self, key: Key, seconds: float) -> float:
        """Sum of the last so many seconds."""

    def refusing(self) -> Refusing | None:
        """Refusals since the last batch."""

    def limited_nodes(self) -> Mapping[str, float]:
        """Nodes beyond their rate limit, and since how many seconds."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One condition.

    name: of the alert rule. hold_seconds: for which it has to hold until it is an alarm. check: one sentence by whom it
    is about (empty: the server).
    """

    name: str
    severity: Severity
    hold_seconds: float
    check: Callable[[Facts], Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Alarm:
    """A condition that holds. seconds: for which it has held. hold_seconds: from which it is an alarm. firing: whether
    it is one."""

    name: str
    about: str
    severity: Severity
    text: str
    seconds: float
    hold_seconds: float
    firing: bool


def _server(figure: str) -> Key:
    return "server", "", figure


def _fails(facts: Facts) -> dict[str, str]:
    counts = {task: round(facts.total(("task", task, "failed"), 600)) for task in facts.tasks}
    return {
        task: f"{count} {'query' if count == 1 else 'queries'} of {task} ended in a failure of the server in the last "
        "ten minutes. Its log has the traceback."
        for task, count in counts.items()
        if count
    }


def _drops(facts: Facts) -> dict[str, str]:
    asked, refused = facts.total(_server("queries"), 300), facts.total(_server("refused"), 300)
    if not refused > 0.1 * asked:
        return {}
    share = min(100.0, 100 * refused / max(asked, 1.0))
    return {
        "": f"{share:.0f} % of the queries of the last five minutes were refused: more load than the server can serve, "
        "or deadlines that are too near."
    }


def _late(facts: Facts) -> dict[str, str]:
    answered, late = facts.total(_server("answered"), 300), facts.total(_server("late"), 300)
    if not late > 0.05 * answered:
        return {}
    return {
        "": f"{100 * late / max(answered, 1.0):.0f} % of the answers of the last five minutes came after their "
        "deadline. Was the profile measured on this machine?"
    }


def _latency_model(facts: Facts) -> dict[str, str]:
    batches, error = facts.total(_server("batches"), 900), facts.total(_server("error"), 900)
    if not error > 0.5 * batches:
        return {}
    return {
        "": f"Predicted batch times are off by {100 * error / max(batches, 1.0):.0f} % on average. Does something else "
        "use the machine?"
    }


def _idle(facts: Facts) -> dict[str, str]:
    found = facts.refusing()
    if found is None or found.first < IDLE_SECONDS or found.last > IDLE_SECONDS:
        return {}
    return {
        "": f"No batch has run for {found.first:.0f} s, while {found.queries} queries were refused for want of time or "
        "room. Do clients ask for less time than one image takes? Else restart the server and report it."
    }


def _memory(facts: Facts) -> dict[str, str]:
    used, most = facts.memory
    if not used > 0.9 * most:
        return {}
    return {"": f"The process has {used / 2**30:.1f} GiB of the {most / 2**30:.1f} GiB that it may have."}


def _rate_limited(facts: Facts) -> dict[str, str]:
    return {node: f"{node} is beyond its rate limit." for node in facts.limited_nodes()}


RULES = (
    Rule("FedstillServeFails", "critical", 0, _fails),
    Rule("FedstillServeIdle", "critical", 0, _idle),
    Rule("FedstillServeMemory", "critical", 300, _memory),
    Rule("FedstillServeDrops", "warning", 600, _drops),
    Rule("FedstillServeLate", "warning", 600, _late),
    Rule("FedstillServeLatencyModel", "warning", 900, _latency_model),
    Rule("FedstillServeRateLimited", "info", 3600, _rate_limited),
)


class Alarms:
    """Remembers since when each condition has held. Call `look` about once a second, from one thread."""

    def __init__(self, rules: Sequence[Rule] = RULES) -> None:
        self._rules = rules
        self._since: dict[tuple[str, str], float] = {}

    def look(self, facts: Facts, now: float) -> list[Alarm]:
        """What holds, most urgent first. now: seconds, never falling."""
        found = []
        for rule in self._rules:
            for about, text in rule.check(facts).items():
                since = self._since.get((rule.name, about), now)
                held = now - since
                hold = rule.hold_seconds
                found.append(Alarm(rule.name, about, rule.severity, text, held, hold, held >= hold))
        self._since = {(one.name, one.about): now - one.seconds for one in found}
        return sorted(found, key=lambda one: not one.firing)
