"""A device's standing connection to the cloud's heads: one stream, which is opened again when it breaks.

A thread of its own opens the stream and reads the answers, so that no clip ever waits for a connection. At most one
clip is in flight: on a slow link a second one would only queue behind the first. Every answer, in time or late, updates
the link estimator.
"""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import grpc
import numpy as np
import numpy.typing as npt

from fedstill.edge_client.inference.levels import CompressionLevel
from fedstill.edge_client.inference.link import LinkEstimate, LinkEstimator
from fedstill.models.audiovisual.levels import Precision
from fedstill.protos import edge_inference_pb2 as pb
from fedstill.protos.edge_inference_pb2_grpc import EdgeInferenceStub

LOG = logging.getLogger(__name__)

PRECISIONS = {Precision.FP32: pb.FP32, Precision.FP16: pb.FP16, Precision.INT8: pb.INT8}
OPEN_SECONDS = 5.0
PATIENCE = 2.0
"""Seconds after which an unanswered clip means that the link is down, not slow."""
OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),  # a new channel is a new TCP connection
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.max_receive_message_length", 64 * 1024),
)
REFUSALS = {
    grpc.StatusCode.UNAUTHENTICATED: "the cloud refuses this device's token",
    grpc.StatusCode.PERMISSION_DENIED: "the cloud refuses this device's name",
    grpc.StatusCode.NOT_FOUND: "the cloud does not know this student",
    grpc.StatusCode.INVALID_ARGUMENT: "the cloud does not understand this device",
    grpc.StatusCode.UNIMPLEMENTED: "the cloud speaks another protocol version",
}


@dataclass(frozen=True)
class Address:
    """The address of the cloud's inference service, and the device's proof of identity.

    Attributes:
        target: ``HOST:PORT``.
        device: the name that the token was issued to.
        token: bearer token; empty sends none (``--insecure``).
        authority: PEM of the certificate authority to trust; None connects in plain text (``--insecure``).
    """

    target: str
    device: str
    token: str = field(default="", repr=False)
    authority: bytes | None = None


@dataclass(frozen=True)
class Description:
    """What the cloud's heads of this student understand."""

    feature_width: int
    rates: tuple[float, ...]


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


class ClosedStream(Exception):
    """The cloud ended the stream, or we did; one line."""


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
        self._address, self._version, self._class_names = address, version, class_names
        self._clock = clock
        self._lock = threading.Lock()
        self._link = LinkEstimator()
        self._description: Description | None = None
        self._reason = "not connected yet"
        self._sequence = 0
        self._pending: dict[int, Ticket] = {}
        self._outgoing: queue.SimpleQueue[pb.ClassifyRequest | None] | None = None
        self._call: grpc.Call | None = None
        self._retry_at = 0.0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cloud-connection", daemon=True)
        self._jitter = random.Random(address.device)  # so that devices do not reconnect all at once

    def start(self) -> None:
        """Begin to connect, in the background."""
        self._thread.start()

    def close(self) -> None:
        """End the stream and the thread."""
        self._closing.set()
        self._hang_up()
        if self._thread.is_alive():
            self._thread.join(2 * OPEN_SECONDS)

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
            if not self._link.estimate.up or self._outgoing is None:
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
        self._hang_up()
        return "link down (no answer)"

    def send(self, rung: CompressionLevel, payload: bytes) -> Ticket:
        """Send one clip's features after an echo request. Call it only without ``hindrance``."""
        ticket = Ticket(len(payload), self._clock())
        with self._lock:
            echo, sequence = self._next_sequence(), self._next_sequence()
            self._pending[echo] = self._pending[sequence] = ticket
            outgoing = self._outgoing
        if outgoing is None:
            self._forget(ticket, "the stream has just ended")
            return ticket
        request = pb.ClassifyRequest(
            sequence=sequence,
            device=self._address.device,
            student_version=self._version,
            rate=rung.rate,
            precision=PRECISIONS[rung.precision],
            features=payload,
        )
        outgoing.put(self._echo(echo))
        outgoing.put(request)
        return ticket

    def gave_up(self, ticket: Ticket) -> None:
        """The clip was answered locally; the answer still missing tells something about the link."""
        with self._lock:
            if ticket in self._pending.values():
                self._link.unanswered(ticket.size, self._clock() - ticket.sent_at)

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                self._session()
            except (grpc.RpcError, ClosedStream) as error:
                if not self._closing.is_set():
                    self._note_failure(error)
            with self._lock:
                pause = self._link.attempt_in(self._clock()) * self._jitter.uniform(1.0, 1.2)
            self._closing.wait(pause)

    def _session(self) -> None:
        """One stream from opening to its end, which is always an exception."""
        with self._channel() as channel:
            stub = EdgeInferenceStub(channel)  # type: ignore[no-untyped-call]
            metadata = [("authorization", f"Bearer {self._address.token}")] if self._address.token else []
            request = pb.DescribeRequest(device=self._address.device, student_version=self._version)
            found = stub.Describe(request, timeout=OPEN_SECONDS, metadata=metadata)
            if tuple(found.class_names) != self._class_names:
                raise ClosedStream("the cloud means other classes")
            self._description = Description(found.feature_width, tuple(found.rates))
            outgoing: queue.SimpleQueue[pb.ClassifyRequest | None] = queue.SimpleQueue()
            call = stub.Classify(_until_none(outgoing), metadata=metadata)
            ticket = Ticket(0, self._clock())
            with self._lock:
                sequence = self._next_sequence()
                self._pending[sequence] = ticket
                self._outgoing, self._call = outgoing, call
            try:
                if self._closing.is_set():
                    return
                outgoing.put(self._echo(sequence))
                for response in call:
                    self._received(response)
                raise ClosedStream("the cloud ended the stream")
            finally:
                self._abandon_stream()
                call.cancel()

    def _received(self, response: pb.ClassifyResponse) -> None:
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

    def _reply(self, response: pb.ClassifyResponse) -> Reply:
        if response.WhichOneof("outcome") != "answer":
            where = f"{response.error.field}: " if response.error.field else ""
            return Reply(None, f"refused ({where}{response.error.message})")
        probabilities = np.asarray(response.answer.probabilities, np.float32)
        if probabilities.shape != (len(self._class_names),) or not np.isfinite(probabilities).all():
            return Reply(None, "the cloud's answer makes no sense")
        return Reply(probabilities)

    def _note_failure(self, error: grpc.RpcError | ClosedStream) -> None:
        code = error.code() if isinstance(error, grpc.Call) else None
        refusal = (
            str(error) if isinstance(error, ClosedStream) else REFUSALS.get(code or grpc.StatusCode.UNKNOWN)
        )
        reason = refusal or (code.name.lower() if code is not None else "failed")
        with self._lock:
            if code is grpc.StatusCode.CANCELLED and not self._link.estimate.up:
                return  # we closed the stream ourselves and reported why
            known, self._reason = self._reason, reason
            self._link.failed(self._clock(), refused=code in REFUSALS)
        if reason != known:
            LOG.warning("event=cloud_lost target=%s reason=%s", self._address.target, reason)

    def _abandon_stream(self) -> None:
        with self._lock:
            outgoing, self._outgoing, self._call = self._outgoing, None, None
            lost, self._pending = set(self._pending.values()), {}
        if outgoing is not None:
            outgoing.put(None)  # ends gRPC's sending thread
        for ticket in lost:
            ticket.resolve(Reply(None, "link down"))

    def _hang_up(self) -> None:
        with self._lock:
            call = self._call
        if call is not None:
            call.cancel()  # type: ignore[no-untyped-call]

    def _forget(self, ticket: Ticket, reason: str) -> None:
        with self._lock:
            self._pending = {key: one for key, one in self._pending.items() if one is not ticket}
        ticket.resolve(Reply(None, reason))

    def _echo(self, sequence: int) -> pb.ClassifyRequest:
        return pb.ClassifyRequest(sequence=sequence, device=self._address.device, echo=True)

    def _next_sequence(self) -> int:
        self._sequence += 1
        return self._sequence

    def _channel(self) -> grpc.Channel:
        if self._address.authority is None:
            return grpc.insecure_channel(self._address.target, OPTIONS)
        credentials = grpc.ssl_channel_credentials(self._address.authority)
        return grpc.secure_channel(self._address.target, credentials, OPTIONS)


def _until_none(outgoing: queue.SimpleQueue[pb.ClassifyRequest | None]) -> Iterator[pb.ClassifyRequest]:
    while (request := outgoing.get()) is not None:
        yield request
