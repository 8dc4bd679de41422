"""The life of a device's stream to the cloud's heads: opened, read until it breaks, and opened again.

A thread of its own does this, so that no clip ever waits for a connection. ``cloud_connection.py`` decides what is
sent, and learns from the answers.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import grpc

from fedstill.common.credentials import day
from fedstill.common.node_token import keep_token, newest_token, token_expiry
from fedstill.common.trusted_roots import (
    UNKNOWN_AUTHORITY,
    accepted_roots,
    fingerprints,
    keep_roots,
    newest_roots,
)
from fedstill.protos import edge_inference_pb2 as pb
from fedstill.protos.edge_inference_pb2_grpc import EdgeInferenceStub

LOG = logging.getLogger(__name__)

OPEN_SECONDS = 5.0
TOKEN_REFUSED = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),  # a new channel is a new TCP connection
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.max_receive_message_length", 64 * 1024),
)
UNTRUSTED = "unable to get local issuer certificate"
"""In the words of gRPC's TLS."""
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
        token_file: the token of the credentials, which may be renewed by hand; None: it stays as it is.
        kept_token: where one is kept that the cloud sends in its place; None: it is not used.
        ca_file: the authority of the credentials, which may be replaced by hand; None: it stays as it is.
        kept_roots: where roots are kept that the cloud sends in its place; None: it is not used.
    """

    target: str
    device: str
    token: str = field(default="", repr=False)
    authority: bytes | None = None
    token_file: Path | None = None
    kept_token: Path | None = None
    ca_file: Path | None = None
    kept_roots: Path | None = None

    @property
    def newest_token(self) -> str:
        """The one to show now."""
        given = self.given_token
        return newest_token(self.kept_token, self.device, given) if self.kept_token else given

    @property
    def given_token(self) -> str:
        """As the credentials have it now, unless they are just being replaced."""
        if self.token_file is not None:
            with suppress(OSError, ValueError):
                token = self.token_file.read_text("ascii").strip()
                token_expiry(token, self.device)
                return token
        return self.token

    def keep(self, sent: str) -> None:
        """Show this token from the next stream on, if it is this device's and ends later than the present one."""
        if self.kept_token is None:
            return
        try:
            if keep_token(self.kept_token, self.device, self.given_token, sent):
                LOG.info("event=token_renewed until=%s", day(token_expiry(sent, self.device)))
        except (OSError, ValueError) as error:
            LOG.warning("event=token_not_kept reason=%s", json.dumps(str(error)))

    def forget_kept(self) -> None:
        """The cloud takes the token of the credentials, and not the one that was kept."""
        if self.kept_token is not None:
            with suppress(OSError):
                self.kept_token.unlink(missing_ok=True)

    @property
    def roots(self) -> bytes | None:
        """PEM of what to trust now; None without TLS."""
        given = self._given_roots
        return newest_roots(self.kept_roots, given) if given and self.kept_roots else given

    @property
    def _given_roots(self) -> bytes | None:
        if self.ca_file is not None:
            with suppress(OSError, ValueError):
                content = self.ca_file.read_bytes()
                fingerprints(content)
                return content
        return self.authority

    def keep_roots(self, accepted: bytes) -> None:
        """Trust these from the next stream on. Raises OSError: they could not be kept."""
        if self.kept_roots is not None:
            keep_roots(self.kept_roots, self._given_roots or b"", accepted)


@dataclass(frozen=True)
class Description:
    """What the cloud's heads of this student understand."""

    feature_width: int
    rates: tuple[float, ...]


@dataclass(frozen=True)
class StreamEnd:
    """Why a stream could not be opened, or ended.

    Attributes:
        reason: one line.
        refused: the cloud refuses us, and only an operator can change that.
        cancelled: the stream was closed, by us or by the network.
    """

    reason: str
    refused: bool = False
    cancelled: bool = False


class ClosedStream(Exception):
    """The cloud ended the stream, or cannot be used; one line."""


class StreamListener(Protocol):
    """Is informed of a stream's life, from the stream's thread. Implemented by ``CloudConnection``."""

    def described(self, description: Description) -> None:
        """The cloud can be used, and understands this; a stream opens next."""

    def opened(self) -> pb.ClassifyRequest:
        """A stream is open; returns its first message."""

    def received(self, response: pb.ClassifyResponse) -> None: ...

    def abandoned(self) -> None:
        """The stream is closed: requests that were sent on it stay unanswered."""

    def failed(self, end: StreamEnd) -> None:
        """There is no stream any more, for this reason. Not called after ``close``."""

    def pause(self) -> float:
        """Seconds until the next attempt."""


class CloudStream:
    """See the top of the file. ``start`` it, ``put`` messages, ``close`` it.

    Args:
        version: the student's.
        class_names: the student's; a cloud that means other classes is not used.
    """

    def __init__(
        self, address: Address, version: str, class_names: tuple[str, ...], listener: StreamListener
    ) -> None:
        self._address, self._version, self._class_names = address, version, class_names
        self._listener = listener
        self._lock = threading.Lock()
        self._outgoing: queue.SimpleQueue[pb.ClassifyRequest | None] | None = None
        self._call: grpc.Call | None = None
        self._closing = threading.Event()
        self._doubts_kept = False
        self._refused_roots = ""
        self._thread = threading.Thread(target=self._run, name="cloud-connection", daemon=True)

    @property
    def is_open(self) -> bool:
        return self._outgoing is not None

    def start(self) -> None:
        """Begin to connect, in the background."""
        self._thread.start()

    def close(self) -> None:
        """End the stream and the thread."""
        self._closing.set()
        self.hang_up()
        if self._thread.is_alive():
            self._thread.join(2 * OPEN_SECONDS)

    def put(self, *messages: pb.ClassifyRequest) -> bool:
        """Send, in this order; False: there is no stream."""
        with self._lock:
            if self._outgoing is None:
                return False
            for message in messages:
                self._outgoing.put(message)
            return True

    def hang_up(self) -> None:
        """End the present stream, if there is one; another one is opened unless we are closing."""
        with self._lock:
            call = self._call
        if call is not None:
            call.cancel()  # type: ignore[no-untyped-call]

    def _run(self) -> None:
        while not self._closing.is_set():
            pause = OPEN_SECONDS
            try:
                self._attempt()
                pause = self._listener.pause()
            except Exception as error:  # of the listener's
                LOG.error("event=cloud_connection_failed reason=%s", json.dumps(repr(error)))
            self._closing.wait(pause)

    def _attempt(self) -> None:
        """One session, whose end the listener learns. Nothing that a cloud sends may end the thread for good."""
        try:
            self._session()
        except Exception as error:
            if isinstance(error, grpc.Call) and error.code() in TOKEN_REFUSED:
                self._doubts_kept = not self._doubts_kept  # one that was sent may be none of this cloud's
            if not self._closing.is_set():
                self._listener.failed(_end_of(error))

    def _session(self) -> None:
        """One stream from opening to its end, which is an exception unless we are closing."""
        roots = self._address.roots
        with self._channel(roots) as channel:
            stub = EdgeInferenceStub(channel)  # type: ignore[no-untyped-call]
            token = self._address.given_token if self._doubts_kept else self._address.newest_token
            metadata = [("authorization", f"Bearer {token}")] if token else []
            request = pb.DescribeRequest(
                device=self._address.device,
                student_version=self._version,
                trusted=self._trusted(roots),
            )
            found = stub.Describe(request, timeout=OPEN_SECONDS, metadata=metadata)
            if self._doubts_kept:
                self._address.forget_kept()
                self._doubts_kept = False
            if found.token:
                self._address.keep(found.token)
            if found.roots and roots and self._follows(roots, found.roots, request, metadata):
                return  # a new connection, by which the cloud learns it
            if tuple(found.class_names) != self._class_names:
                raise ClosedStream("the cloud means other classes")
            self._listener.described(Description(found.feature_width, tuple(found.rates)))
            outgoing: queue.SimpleQueue[pb.ClassifyRequest | None] = queue.SimpleQueue()
            call = stub.Classify(_until_none(outgoing), metadata=metadata)
            outgoing.put(self._listener.opened())
            with self._lock:
                self._outgoing, self._call = outgoing, call
            try:
                if self._closing.is_set():
                    return
                for response in call:
                    self._listener.received(response)
                raise ClosedStream("the cloud ended the stream")
            finally:
                with self._lock:
                    self._outgoing, self._call = None, None
                outgoing.put(None)  # ends gRPC's sending thread
                self._listener.abandoned()
                call.cancel()

    def _trusted(self, roots: bytes | None) -> tuple[str, ...]:
        """For the cloud, which may send others; none if there is no place to keep them."""
        if roots is not None and self._address.kept_roots is not None:
            with suppress(ValueError):
                return fingerprints(roots)
        return ()

    def _follows(
        self, roots: bytes, sent: bytes, request: pb.DescribeRequest, metadata: list[tuple[str, str]]
    ) -> bool:
        """Whether other roots are trusted now: acceptable ones, by which this very cloud can be reached."""
        try:
            accepted = accepted_roots(roots, sent)
            if set(fingerprints(accepted)) == set(fingerprints(roots)):
                return False  # nothing that a new connection would change
            with self._channel(accepted) as trial:
                stub = EdgeInferenceStub(trial)  # type: ignore[no-untyped-call]
                stub.Describe(request, timeout=OPEN_SECONDS, metadata=metadata)
            self._address.keep_roots(accepted)
        except (ValueError, OSError, grpc.RpcError) as error:
            reason = (
                "the cloud shows no certificate of theirs" if isinstance(error, grpc.RpcError) else str(error)
            )
            if reason != self._refused_roots:
                LOG.warning("event=roots_refused reason=%s", json.dumps(reason))
            self._refused_roots = reason
            return False
        self._refused_roots = ""
        LOG.info("event=roots_renewed roots=%d", len(fingerprints(accepted)))
        return True

    def _channel(self, roots: bytes | None) -> grpc.Channel:
        if roots is None:
            return grpc.insecure_channel(self._address.target, OPTIONS)
        credentials = grpc.ssl_channel_credentials(roots)
        return grpc.secure_channel(self._address.target, credentials, OPTIONS)


def _end_of(error: Exception) -> StreamEnd:
    if isinstance(error, ClosedStream):
        return StreamEnd(str(error))
    if not isinstance(error, grpc.RpcError):
        return StreamEnd(f"failed unexpectedly: {error!r}")
    code = error.code() if isinstance(error, grpc.Call) else None
    if code is None:
        return StreamEnd("failed")
    if UNTRUSTED in (error.details() or ""):
        return StreamEnd(UNKNOWN_AUTHORITY, refused=True)
    reason = REFUSALS.get(code, code.name.lower())
    return StreamEnd(reason, refused=code in REFUSALS, cancelled=code is grpc.StatusCode.CANCELLED)


def _until_none(outgoing: queue.SimpleQueue[pb.ClassifyRequest | None]) -> Iterator[pb.ClassifyRequest]:
    while (request := outgoing.get()) is not None:
        yield request
