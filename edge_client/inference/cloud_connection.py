"""A device's standing connection to the cloud's heads: the clips in flight, their answers, and the link estimate.

At most one clip is in flight: on a slow link a second one would only queue behind the first. Every answer, in time or
late, updates the link estimator. The stream itself is opened, and opened again, in ``cloud_stream.py``.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedstill.edge_client.inference.cloud_stream import Address, CloudStream, Description, StreamEnd
from fedstill.edge_client.inference.levels import CompressionLevel
from fedstill.edge_client.inference.link import LinkEstimate, LinkEstimator
from fedstill.models.audiovisual.levels import Precision
from fedstill.protos import edge_inference_pb2 as pb

LOG = logging.getLogger(__name__)

PRECISIONS = {Precision.FP32: pb.FP32, Precision.FP16: pb.FP16, Precision.INT8: pb.INT8}
PATIENCE = 2.0
"""Seconds after which an unanswered clip means that the link is down, not slow."""
WAIT_STEP = 0.02


@dataclass(frozen=True)
class Reply:
    """The cloud's answer to one clip: probabilities float32 (classes,), or why there are none."""

    probabilities: npt.NDArray[np.float32] | None
    refusal: str = ""


class Ticket:
    """One clip in flight."""

    def __init__(self, size: int, sent_at: float) -> None:
        self.size = size
        self.sent_at = sent_at
        self.echo_seconds: float | None = None
        self.seconds: float | None = None
        """Seconds from sending to the answer, once it has arrived."""
        self._reply: Reply | None = None
        self._arrived = threading.Event()

    def wait(self, seconds: float) -> Reply | None:
        """The reply, or None if there is none within ``seconds``."""
        self._arrived.wait(max(0.0, seconds))
        return self._reply

    def resolve(self, reply: Reply) -> None:
        """The reply has arrived, or will never come."""
        self._reply = reply
        self._arrived.set()


class CloudConnection:
    """See the top of the file. ``start`` it, ``send`` clips, ``close`` it.

    Args:
        address: of the service.
        version: the student's.
        class_names: the student's; a cloud that means other classes is not used.
    """

    def __init__(
        self,
        address: Address,
        version: str,
        class_names: tuple[str, ...],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._address, self._version, self._classes = address, version, len(class_names)
        self._clock = clock
        self._lock = threading.Lock()
        self._link = LinkEstimator()
        self._description: Description | None = None
        self._reason = "not connected yet"
        self._refused = False
        self._sequence = 0
        self._pending: dict[int, Ticket] = {}
        self._retry_at = 0.0
        self._stream = CloudStream(address, version, class_names, self)
        self._jitter = random.Random(address.device)  # so that devices do not reconnect all at once

    def start(self) -> None:
        """Begin to connect, in the background."""
        self._stream.start()

    def close(self) -> None:
        """End the stream and its thread."""
        self._stream.close()

    @property
    def estimate(self) -> LinkEstimate:
        """What is known about the link."""
        with self._lock:
            return self._link.estimate

    @property
    def description(self) -> Description | None:
        """What the cloud understands; None before the first contact."""
        return self._description

    def hindrance(self) -> str:
        """Why no clip can be sent now; empty if one can. A clip unanswered for too long means: link down."""
        now = self._clock()
        with self._lock:
            if not self._link.estimate.up or not self._stream.is_open:
                return f"link down ({self._reason})"
            oldest = min((ticket.sent_at for ticket in self._pending.values()), default=now)
            if not self._pending and now < self._retry_at:
                return "cloud busy"
            if not self._pending:
                return ""
            if now - oldest < PATIENCE:
                return "link busy"
            self._reason = "no answer"
            self._link.failed(now)
        LOG.warning("event=cloud_lost target=%s reason=%s", self._address.target, "no answer")
        self._stream.hang_up()
        return "link down (no answer)"

    def wait(self, seconds: float) -> bool:
        """Wait until clips can be sent, at most so long; whether they can. A refusal is not waited for."""
        end = time.monotonic() + seconds
        while (self.hindrance() or self._description is None) and time.monotonic() < end:
            if self._refused:
                return False
            time.sleep(WAIT_STEP)
        return not self.hindrance() and self._description is not None

    def send(self, level: CompressionLevel, payload: bytes) -> Ticket:
        """Send one clip's features after an echo request. Call it only without ``hindrance``."""
        ticket = Ticket(len(payload), self._clock())
        with self._lock:
            echo, sequence = self._next_sequence(), self._next_sequence()
            self._pending[echo] = self._pending[sequence] = ticket
        request = pb.ClassifyRequest(
            sequence=sequence,
            device=self._address.device,
            student_version=self._version,
            rate=level.rate,
            precision=PRECISIONS[level.precision],
            features=payload,
        )
        if not self._stream.put(self._echo(echo), request):
            self._forget(ticket, "the stream has just ended")
        return ticket

    def gave_up(self, ticket: Ticket) -> None:
        """The clip was answered locally; the answer still missing tells something about the link."""
        with self._lock:
            if ticket in self._pending.values():
                self._link.unanswered(ticket.size, self._clock() - ticket.sent_at)

    # StreamListener, called from the stream's thread.

    def described(self, description: Description) -> None:
        """The cloud can be used, and understands this."""
        self._description = description

    def opened(self) -> pb.ClassifyRequest:
        """The first message of a new stream is an echo request: the link is up when it comes back."""
        ticket = Ticket(0, self._clock())
        with self._lock:
            sequence = self._next_sequence()
            self._pending[sequence] = ticket
        return self._echo(sequence)

    def received(self, response: pb.ClassifyResponse) -> None:
        """An echo, an answer or a refusal arrived."""
        now = self._clock()
        with self._lock:
            ticket = self._pending.pop(response.sequence, None)
            if ticket is None:
                return  # an answer of a stream that was given up
            seconds = now - ticket.sent_at
            kind = response.WhichOneof("outcome")
            if kind == "echo":
                ticket.echo_seconds = seconds
                if not self._link.estimate.up:
                    LOG.info("event=cloud_connected target=%s", self._address.target)
                self._link.echoed(seconds)
                return
            if kind == "answer":
                at_work = response.answer.server_milliseconds / 1000
                self._link.transferred(ticket.size, seconds - at_work - (ticket.echo_seconds or 0.0))
            else:
                self._retry_at = now + response.error.retry_milliseconds / 1000
        ticket.seconds = seconds
        ticket.resolve(self._reply(response))

    def abandoned(self) -> None:
        """No clip in flight will be answered."""
        with self._lock:
            lost, self._pending = set(self._pending.values()), {}
        for ticket in lost:
            ticket.resolve(Reply(None, "link down"))

    def failed(self, end: StreamEnd) -> None:
        """The link is down, unless we closed the stream ourselves and reported why."""
        with self._lock:
            if end.cancelled and not self._link.estimate.up:
                return
            known, self._reason, self._refused = self._reason, end.reason, end.refused
            self._link.failed(self._clock(), refused=end.refused)
        if end.reason != known:
            LOG.warning("event=cloud_lost target=%s reason=%s", self._address.target, end.reason)

    def pause(self) -> float:
        """Seconds until the stream is opened again: the link's back-off, with jitter."""
        with self._lock:
            return self._link.attempt_in(self._clock()) * self._jitter.uniform(1.0, 1.2)

    def _reply(self, response: pb.ClassifyResponse) -> Reply:
        if response.WhichOneof("outcome") != "answer":
            where = f"{response.error.field}: " if response.error.field else ""
            return Reply(None, f"refused ({where}{response.error.message})")
        probabilities = np.asarray(response.answer.probabilities, np.float32)
        if probabilities.shape != (self._classes,) or not np.isfinite(probabilities).all():
            return Reply(None, "the cloud's answer makes no sense")
        return Reply(probabilities)

    def _forget(self, ticket: Ticket, reason: str) -> None:
        with self._lock:
            self._pending = {key: one for key, one in self._pending.items() if one is not ticket}
        ticket.resolve(Reply(None, reason))

    def _echo(self, sequence: int) -> pb.ClassifyRequest:
        return pb.ClassifyRequest(sequence=sequence, device=self._address.device, echo=True)

    def _next_sequence(self) -> int:
        self._sequence += 1
        return self._sequence
