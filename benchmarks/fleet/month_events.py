"""What happens to a fleet in a month: events drawn by a seeded generator from what can happen at that moment."""

from __future__ import annotations

import random
from dataclasses import dataclass

JOIN, LEAVE, NEW_CARD, NEW_CLIPS, DRIFT = "join", "leave", "SD card swapped", "new clips", "drift"
KILL, CUT, CLOCK, CREDENTIALS, UPGRADE = (
    "kill -9", "link cut", "clock jump", "certificate renewed", "newer version"
)  # fmt: skip
WEIGHTS = {
    JOIN: 3, LEAVE: 2, NEW_CARD: 2, NEW_CLIPS: 3, DRIFT: 3, KILL: 4, CUT: 2, CLOCK: 2, CREDENTIALS: 2, UPGRADE: 1
}  # fmt: skip
AGENT, NODE = "agent", "SuperNode"
OF_THE_CLOUD = ("coordinator", "SuperLink", "fleet proxy", "ServerApp")
PROCESSES = (AGENT, NODE, *OF_THE_CLOUD)
RENEWALS = ("token", "device", "server")
"""A new token for a device, a new key and name in its place, a new certificate of the server."""
MINUTE, DAY = 60.0, 86_400.0
JUMPS = (-30 * DAY, -DAY, -20 * MINUTE, -2 * MINUTE, 2 * MINUTE, 20 * MINUTE, DAY, 30 * DAY)
OUTAGES = 5.0, 60.0
"""Seconds that a link is cut or a clock is wrong."""


@dataclass(frozen=True)
class Event:
    """One event.

    Attributes:
        at: seconds after the beginning.
        client: the device; -1: it happens in the cloud.
        what: the process that is killed, what is renewed, or nothing.
        seconds: that a link is cut or a clock is wrong.
        jump: of a clock, seconds.
    """

    at: float
    kind: str
    client: int = -1
    what: str = ""
    seconds: float = 0.0
    jump: float = 0.0


def draw(seed: int, count: int, agents: int, seconds: float) -> tuple[int, list[Event]]:
    """(how many agents are there at first, the events in their order), spread over ``seconds``.

    Clients join in the order of their numbers. An agent may leave and join again; at least a third of all stay.
    """
    rng = random.Random(f"{seed} {count} {agents}")
    first = max(1, 2 * agents // 3)
    here, unborn = list(range(first)), list(range(first, agents))
    away: list[int] = []
    times = sorted(rng.uniform(0, seconds) for _ in range(count))
    events = []
    for at in times:
        able = {JOIN: bool(away or unborn), LEAVE: 3 * len(here) > agents and len(here) > 1}
        kinds = [kind for kind in WEIGHTS if able.get(kind, True)]
        (kind,) = rng.choices(kinds, [WEIGHTS[one] for one in kinds])
        client = rng.choice(here)
        if kind == JOIN:
            client = rng.choice([*away, *unborn[:1]])
            (away if client in away else unborn).remove(client)
            here.append(client)
        elif kind == LEAVE:
            here.remove(client)
            away.append(client)
        what = ""
        if kind == KILL:
            what = rng.choice(PROCESSES)
        elif kind == CREDENTIALS:
            what = rng.choice(RENEWALS)
        if kind == UPGRADE or what == "server" or what in OF_THE_CLOUD:
            client = -1
        seconds_of_it = rng.uniform(*OUTAGES) if kind in (CUT, CLOCK) else 0.0
        jump = rng.choice(JUMPS) if kind == CLOCK else 0.0
        events.append(Event(at, kind, client, what, seconds_of_it, jump))
    return first, events
