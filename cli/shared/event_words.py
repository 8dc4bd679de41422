"""What happens in a fleet, one line each: the events of a coordinator's log in an operator's words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

from fedstill.cloud_server.journal.progress_pace import ProgressPace

Event = dict[str, Any]


class EventWords:
    """Of all events that are given to it, in their order.

    Progress of a training is told at most every two seconds for each job: what all devices share is one, and so is
    every device's own student.
    """

    def __init__(self) -> None:
        self._pace = ProgressPace()

    def lines(self, event: Event, names: Sequence[str], progress: bool) -> Iterator[str]:
        """None or one, with the time; none for an event of another form than this fedstill writes.

        Args:
            names: of the devices, by client.
            progress: whether trainings are told while they go on.
        """
        with suppress(KeyError, TypeError, ValueError, OverflowError, OSError):
            line = in_words(event, names)
            if not line and progress:
                told = progress_in_words(event, names)
                line = told if told and self._pace.is_time(event.get("client"), float(event["time"])) else ""
            if line:
                yield f"{datetime.fromtimestamp(event['time']):%Y-%m-%d %H:%M:%S} {_printable(line)}"


def in_words(event: Event, names: Sequence[str] = ()) -> str:
    """One line; empty for what an operator need not know, and for progress.

    Args:
        names: of the devices, by client.
    """
    who = _who(event, names)
    match event["event"]:
        case "device":
            return f"{who} {event['state']}"
        case "refused":
            return f"node {event['node']} refused: {event['reason']}"
        case "visit":
            times = f", for the {event['visit'] + 1}. time" if event["visit"] else ""
            return f"{who} is being personalised ({event['cause']}{times})"
        case "visited" if event["outcome"] == "served":
            return f"{who} uses its new student {event['student'][:12]}{_number_in_words(event)}"
        case "visited" if event["outcome"] == "kept":
            return f"{who} keeps its student: {event['reason']}"
        case "visited":
            again = datetime.fromtimestamp(event["next_attempt"])
            return f"{who} {event['outcome']}: {event['reason']}; again after {again:%Y-%m-%d %H:%M:%S}"
        case "no_prototypes":
            return f"{who} gives no prototypes, so it gets another student: {event['reason']}"
        case "all_served":
            return f"all {event['devices']} devices have their student"
        case "teacher_ready":
            return f"teacher {event['number']} is made ({event['digest'][:12]})"
        case "aborted":
            return f"the run failed: {event['reason']}"
        case "finished":
            return "the run is finished"
    return ""


def progress_in_words(event: Event, names: Sequence[str] = ()) -> str:
    """How far a training is; empty for another event."""
    if not {"epoch", "epochs"} <= event.keys():
        return ""
    match event["event"]:
        case "teacher_epoch":
            what = "the teacher"
        case "all_distill_epoch" | "equal_steps_epoch":
            what = "the student for all devices"
        case "fold_epoch":
            what = f"its check {event['fold'] + 1} of {event['folds']}, without some speakers"
        case "student_epoch":
            purpose = "tried without some speakers" if event["purpose"] == "check" else "made"
            what = f"the student of {_who(event, names)} ({event['candidate']}) is {purpose}"
        case _:
            return ""
    return f"{what}: epoch {event['epoch']} of {event['epochs']}"


def _printable(line: str) -> str:
    """What devices say is in it, so that it must stay one line and do nothing to a terminal."""
    return "".join(one if one.isprintable() else "?" for one in line)


def _who(event: Event, names: Sequence[str]) -> str:
    client = event.get("client")
    name = names[client] if type(client) is int and 0 <= client < len(names) else ""
    return name or f"client {client}"


def _number_in_words(event: Event) -> str:
    """Which of the device's students it is, and of which teacher; empty for an event of an older fedstill."""
    return f" (student {event['visit'] + 1}, teacher {event['teacher']})" if "teacher" in event else ""
