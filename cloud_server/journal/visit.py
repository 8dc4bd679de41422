"""When a service gives a device its student: at first, and again when it needs one.

A visit is one personalisation of one device. It begins with a cause, is repeated until it succeeds, and has the same
number and the same uploads all the time. A new cause is a new visit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

SERVED, KEPT, FAILED, REFUSED = "served", "kept", "failed", "refused"
"""Outcomes of a visit. Kept: no new student is estimated better than the one in use. Failed: the device did not answer
usefully. Refused: it tried the student, and keeps what it had."""
DONE = SERVED, KEPT
"""The device has the newest student that is meant for it."""
FIRST_PAUSE, LONGEST_PAUSE = 60.0, 6 * 3600.0
"""Seconds before a failed visit is repeated; twice as long after each further failure."""
REFUSED_PAUSE = 24 * 3600.0
"""Seconds before a device that refused its student is asked for a new summary."""
CHANGE_PAUSE = 24 * 3600.0
"""Seconds after a visit before a change of the device's clips is a cause for another one."""
NEW, REPLACED, LOST, REQUESTED, AFTER_REFUSAL, REGULAR, TEACHER = (
    "new device", "device replaced", "lost its student", "asked for", "refused before", "time has come",
    "teacher changed",
)  # fmt: skip


@dataclass(frozen=True)
class Visit:
    """One personalisation of a device.

    Attributes:
        visit: its number, from 0 for each client.
        device: the registered name of the device.
        outcome: one of the four above; empty while it lasts, or if the cloud ended meanwhile.
        reason: of another outcome than served; one line.
        student: the version that the device used at the end.
        attempts: how many have failed in a row.
        teacher: the number of the teacher of which the student is made, from 1.
        started, ended: of the newest attempt, seconds since 1970; ended is None while it lasts.
    """

    client: int
    visit: int
    cause: str
    device: str
    outcome: str = ""
    reason: str = ""
    student: str = ""
    attempts: int = 0
    started: float = 0.0
    ended: float | None = None
    teacher: int = 1

    def next_attempt(self, scale: float = 1.0) -> float | None:
        """When it is tried again, seconds since 1970; None unless it went wrong."""
        if self.outcome == FAILED:
            pause = min(FIRST_PAUSE * 2.0 ** min(self.attempts - 1, 30), LONGEST_PAUSE)
        elif self.outcome == REFUSED:
            pause = REFUSED_PAUSE
        else:
            return None
        return (self.ended or self.started) + scale * pause


@dataclass(frozen=True)
class Seen:
    """What the cloud knows of a device that is online.

    Attributes:
        device: its registered name.
        student: the version that it uses.
        change: of its clips since then, as it says: one of ``messages.CHANGES``, a cause for a visit, or empty.
    """

    device: str
    student: str
    change: str = ""


def due(
    last: Visit | None,
    seen: Seen,
    asked: float,
    now: float,
    scale: float = 1.0,
    every: float = 0.0,
    teacher: int = 1,
) -> Visit | None:
    """The visit that this device needs now; None if it has what it should have, or must wait.

    Args:
        last: the newest visit of its client.
        asked: when an operator last asked for a new student, seconds since 1970; 0 for never.
        scale: of all pauses.
        every: seconds after which a device gets a new student in any case; 0: never.
        teacher: the number of the present teacher. What a device has said about its clips under another one's student
            is worth nothing, so a visit that is not finished is not repeated with it.
    """
    if last is None:
        return Visit(0, 0, NEW, seen.device, teacher=teacher)
    another = Visit(last.client, last.visit + 1, "", seen.device, teacher=teacher)
    if seen.device != last.device:
        return replace(another, cause=REPLACED)
    if teacher != last.teacher:
        return replace(another, cause=TEACHER)
    if not last.outcome:
        return last
    if asked > last.started:
        return replace(another, cause=REQUESTED)
    again = last.next_attempt(scale)
    if again is not None:
        # a clock that was set back must not make a device wait for years
        if now >= again or now < (last.ended or last.started):
            return last if last.outcome == FAILED else replace(another, cause=AFTER_REFUSAL)
        return None
    if seen.student != last.student:
        return replace(another, cause=LOST)
    waited = now - (last.ended or last.started)
    if seen.change and not 0 <= waited < scale * CHANGE_PAUSE:
        return replace(another, cause=seen.change)
    return replace(another, cause=REGULAR) if every and (waited >= every or waited < -every) else None
