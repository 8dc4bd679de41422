"""The call that is being answered: its request id and whose token came with it, for logs, limits and the decision log.

A call runs in a task of its own, so a context variable holds it: whatever the task logs can name it.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field

REQUEST_ID_KEY = "x-request-id"
TRACE_KEYS = "traceparent", "tracestate"
LONGEST_ID = 128
"""Characters; the rest is cut off."""


@dataclass(slots=True)
class Call:
    """request_id: printable ASCII. node: of the token; empty without one. given: whether the client sent the id. trace:
    the headers of W3C Trace Context that came with it. elapsed: seconds that it was on its way before it came here, to
    another process of the same server: they count against its deadline."""

    request_id: str = ""
    given: bool = False
    node: str = ""
    trace: Mapping[str, str] = field(default_factory=dict)
    elapsed: float = 0.0

    def name(self, protocol_id: str) -> None:
        """The protocol's own id, unless the client sent one in the header."""
        text = printable(protocol_id)
        if text and not self.given:
            self.request_id = text


_CURRENT: ContextVar[Call | None] = ContextVar("call", default=None)


def begin(header: str, trace: Mapping[str, str] | None = None) -> Call:
    """The call of this task from now on. header: ``x-request-id`` as it came, or nothing; then an id is made."""
    given = printable(header)
    call = Call(given or secrets.token_hex(8), bool(given), trace=trace or {})
    _CURRENT.set(call)
    return call


def go_on(call: Call) -> None:
    """This task answers a call that began in another process."""
    _CURRENT.set(call)


def current() -> Call:
    """The call of this task; outside of one, a call of nobody."""
    return _CURRENT.get() or Call()


def log_fields() -> dict[str, str]:
    """What a log line says of the call that it belongs to, if to any."""
    call = _CURRENT.get()
    if call is None:
        return {}
    return {"request_id": call.request_id} | ({"node": call.node} if call.node else {})


def printable(text: str) -> str:
    """The text in ``LONGEST_ID`` printable ASCII characters at most; ``?`` for every other one, nothing for blanks."""
    cut = text.strip()[:LONGEST_ID].strip()
    return "".join(one if " " <= one <= "~" else "?" for one in cut)
