"""The cloud's side of edge inference: one gRPC service, its checks, its TLS server and its clean end.

A request that does not fit is answered with an error that names the field, and neither its stream nor the server's
state changes. Bytes that are not a request at all are treated the same way; that is why requests are parsed here and
not by gRPC. Devices prove their identity by a bearer token; the name in a request must be the token's.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field

import grpc
from google.protobuf.message import DecodeError, Message

from fedstill.cloud_server.auth.authenticator import Authorise, Context, bearer_token
from fedstill.cloud_server.auth.roots_notes import RootsNotes
from fedstill.cloud_server.auth.roots_update import RootsUpdate
from fedstill.cloud_server.auth.token_renewal import TokenRenewal
from fedstill.cloud_server.auth.tokens import TokenError
from fedstill.cloud_server.edge_inference.heads import HeadError, Heads, HeadStore, UnknownVersion
from fedstill.cloud_server.edge_inference.micro_batching import Batching, MicroBatcher, QueueFull
from fedstill.cloud_server.grpc.request_error import RequestError
from fedstill.models.audiovisual.levels import Precision
from fedstill.protos import edge_inference_pb2 as pb
from fedstill.protos.features import FeatureError, FeatureVectors, decode_features

LOG = logging.getLogger(__name__)

SERVICE = "fedstill.edge_inference.v1.EdgeInference"
PRECISIONS = {pb.FP32: Precision.FP32, pb.FP16: Precision.FP16, pb.INT8: Precision.INT8}
IN_FLIGHT_PER_DEVICE = 32
LONGEST_NAME = 128
RENEWAL_SECONDS = 1.0
STREAM_SECONDS = 86_400.0
"""After which a stream ends and is opened again: what devices are told then, a standing one would never learn."""
MOST_ROOTS = 16
FINGERPRINT = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Caller:
    """The device of a stream: the name that its token proves; None if no token is required."""

    name: str | None
    token: str = field(default="", repr=False)


@dataclass
class Counters:
    """Counters since the service began."""

    answered: int = 0
    refused: int = 0
    echoes: int = 0
    feature_bytes: int = 0


class InferenceService:
    """Answers devices.

    Args:
        head_store: the heads.
        authorise: turns a token into a device's name; None accepts everybody (``--insecure``).
        batching: of clips across devices.
        renewal: of tokens that end soon; None: they are not renewed.
        roots: that devices are to trust; None: those that they have.
    """

    def __init__(
        self,
        head_store: HeadStore,
        authorise: Authorise | None,
        batching: Batching = Batching(),  # noqa: B008, it is frozen
        renewal: TokenRenewal | None = None,
        roots: RootsUpdate | None = None,
    ) -> None:
        self.counters = Counters()
        self.batcher = MicroBatcher(batching)
        self._head_store = head_store
        self._authorise, self._renewal, self._roots = authorise, renewal, roots
        self._renewing = ThreadPoolExecutor(1, "renewal")  # a disk that hangs keeps no clip waiting
        self._renewal_runs = False
        self._notes = RootsNotes(roots.note) if roots else None
        self._readers: set[asyncio.Task[None]] = set()
        self._draining = False

    def handlers(self) -> grpc.GenericRpcHandler[Message, Message]:
        """The service for a gRPC server."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Describe": grpc.unary_unary_rpc_method_handler(
                    self.describe, _parser(pb.DescribeRequest), pb.DescribeResponse.SerializeToString
                ),
                "Classify": grpc.stream_stream_rpc_method_handler(
                    self.classify, _parser(pb.ClassifyRequest), pb.ClassifyResponse.SerializeToString
                ),
            },
        )

    def drain(self) -> None:
        """Take no further request; accepted requests are still answered, then the streams end."""
        self._draining = True
        for reader in self._readers:
            reader.cancel()

    def close(self) -> None:
        """After the last answer. What waits for a disk is not waited for."""
        self._renewing.shutdown(wait=False, cancel_futures=True)
        if self._notes is not None:
            self._notes.close()

    async def describe(self, request: pb.DescribeRequest | None, context: Context) -> pb.DescribeResponse:
        """The unary call; refusals are gRPC status codes."""
        caller = await self._caller(context)
        try:
            if request is None:
                raise RequestError(grpc.StatusCode.INVALID_ARGUMENT, "message", "not a DescribeRequest")
            self._check_name(request.device, caller)
            trusted = _trusted(request)
            heads = await self._heads(request.student_version)
        except RequestError as error:
            self.counters.refused += 1
            await context.abort(error.code, f"{error.field}: {error}")
            raise  # abort has raised already
        return pb.DescribeResponse(
            class_names=heads.class_names,
            feature_width=heads.feature_width,
            rates=sorted(heads.by_rate),
            token=await self._renewed(caller),
            roots=self._roots_for(caller, trusted),
        )

    def _roots_for(self, caller: Caller, trusted: tuple[str, ...]) -> bytes:
        """Empty if they are as they should be."""
        if caller.name is None or self._roots is None or self._notes is None:
            return b""
        if self._roots.news(caller.name, trusted):
            self._notes.put(caller.name, trusted)
        return self._roots.bundle_for(trusted)

    async def _renewed(self, caller: Caller) -> str:
        """Empty also while another one is made: there is time, the device comes again."""
        renewal = self._renewal
        if caller.name is None or renewal is None or self._renewal_runs:
            return ""
        if not renewal.due(caller.name, caller.token):
            return ""
        self._renewal_runs = True
        made = asyncio.get_running_loop().run_in_executor(self._renewing, renewal, caller.name)
        made.add_done_callback(self._renewal_ended)
        ready, _ = await asyncio.wait([made], timeout=RENEWAL_SECONDS)
        return made.result() if ready and made.exception() is None else ""

    def _renewal_ended(self, made: asyncio.Future[str]) -> None:
        self._renewal_runs = False
        if not made.cancelled() and (error := made.exception()) is not None:
            LOG.error("event=renewal_failed reason=%r", error)

    async def classify(
        self, requests: AsyncIterator[pb.ClassifyRequest | None], context: Context
    ) -> AsyncIterator[pb.ClassifyResponse]:
        """The stream: answers in the order of the requests, at most ``IN_FLIGHT_PER_DEVICE`` in progress."""
        caller = await self._caller(context)
        answers: asyncio.Queue[asyncio.Task[pb.ClassifyResponse] | None] = asyncio.Queue()
        room = asyncio.Semaphore(IN_FLIGHT_PER_DEVICE)
        reader = asyncio.create_task(self._read(requests, caller, answers, room))
        self._readers.add(reader)
        end = asyncio.get_running_loop().call_later(STREAM_SECONDS, reader.cancel)
        if self._draining:
            reader.cancel()
        try:
            while (answer := await answers.get()) is not None:
                yield await answer
                room.release()
        finally:
            end.cancel()
            reader.cancel()
            self._readers.discard(reader)

    async def _read(
        self,
        requests: AsyncIterator[pb.ClassifyRequest | None],
        caller: Caller,
        answers: asyncio.Queue[asyncio.Task[pb.ClassifyResponse] | None],
        room: asyncio.Semaphore,
    ) -> None:
        try:
            async for request in requests:
                await room.acquire()
                answers.put_nowait(asyncio.create_task(self._answer(request, caller, time.perf_counter())))
        finally:
            answers.put_nowait(None)

    async def _answer(
        self, request: pb.ClassifyRequest | None, caller: Caller, received: float
    ) -> pb.ClassifyResponse:
        sequence = 0 if request is None else request.sequence
        try:
            if request is None:
                raise RequestError(grpc.StatusCode.INVALID_ARGUMENT, "message", "not a ClassifyRequest")
            self._check_caller(caller)
            self._check_name(request.device, caller)
            if request.echo:
                self.counters.echoes += 1
                return pb.ClassifyResponse(sequence=sequence, echo=pb.Echo())
            heads = await self._heads(request.student_version)
            features = _features_of(request, heads)
            row = await self.batcher.classify(heads, request.rate, features)
        except RequestError as error:
            return self._refusal(sequence, error)
        except QueueFull as error:
            busy = RequestError(
                grpc.StatusCode.RESOURCE_EXHAUSTED, "", f"busy: {error}", error.retry_milliseconds
            )
            return self._refusal(sequence, busy)
        except Exception:
            LOG.exception("event=classify_failed device=%s sequence=%d", caller.name, sequence)
            failure = RequestError(grpc.StatusCode.INTERNAL, "", "the server failed; see its log")
            return self._refusal(sequence, failure)
        self.counters.answered += 1
        self.counters.feature_bytes += len(request.features)
        answer = pb.Answer(
            probabilities=row.tolist(),
            path="cloud",
            rate=request.rate,
            precision=request.precision,
            feature_bytes=len(request.features),
            server_milliseconds=1000 * (time.perf_counter() - received),
        )
        return pb.ClassifyResponse(sequence=sequence, answer=answer)

    def _refusal(self, sequence: int, error: RequestError) -> pb.ClassifyResponse:
        self.counters.refused += 1
        refusal = pb.Error(
            code=error.code.value[0],
            field=error.field,
            message=str(error),
            retry_milliseconds=error.retry_milliseconds,
        )
        return pb.ClassifyResponse(sequence=sequence, error=refusal)

    async def _heads(self, version: str) -> Heads:
        if (heads := self._head_store.loaded(version)) is not None:
            return heads
        try:
            return await asyncio.to_thread(self._head_store.get, version)
        except UnknownVersion:
            text = "no heads of this student here"
            raise RequestError(grpc.StatusCode.NOT_FOUND, "student_version", text) from None
        except HeadError as error:
            LOG.error("event=heads_unusable reason=%s", error)
            text = "the heads of this student are damaged on the server"
            raise RequestError(grpc.StatusCode.NOT_FOUND, "student_version", text) from None

    async def _caller(self, context: Context) -> Caller:
        """The caller. Aborts an unknown one."""
        if self._authorise is None:
            return Caller(None)
        try:
            token = bearer_token(context)
            return Caller(self._authorise(token), token)
        except TokenError as error:
            self.counters.refused += 1
            LOG.warning("event=caller_refused peer=%s reason=%s", context.peer(), error)
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, f"authorization: {error}")
            raise  # abort has raised already

    def _check_caller(self, caller: Caller) -> None:
        """A token may expire or be revoked while its stream lives on."""
        if self._authorise is None:
            return
        try:
            self._authorise(caller.token)
        except TokenError as error:
            raise RequestError(grpc.StatusCode.UNAUTHENTICATED, "authorization", str(error)) from None

    def _check_name(self, claimed: str, caller: Caller) -> None:
        if not 0 < len(claimed) <= LONGEST_NAME:
            text = f"needs 1 to {LONGEST_NAME} characters"
            raise RequestError(grpc.StatusCode.INVALID_ARGUMENT, "device", text)
        if caller.name is not None and claimed != caller.name:
            raise RequestError(grpc.StatusCode.PERMISSION_DENIED, "device", "the token is another device's")


def _trusted(request: pb.DescribeRequest) -> tuple[str, ...]:
    if len(request.trusted) > MOST_ROOTS or not all(map(FINGERPRINT.fullmatch, request.trusted)):
        text = f"needs at most {MOST_ROOTS} digests of 64 hexadecimal digits"
        raise RequestError(grpc.StatusCode.INVALID_ARGUMENT, "trusted", text)
    return tuple(request.trusted)


def _features_of(request: pb.ClassifyRequest, heads: Heads) -> FeatureVectors:
    if request.rate not in heads.by_rate:
        rates = ", ".join(f"{rate:g}" for rate in sorted(heads.by_rate))
        text = f"{request.rate:g} has no head; there are {rates}"
        raise RequestError(grpc.StatusCode.INVALID_ARGUMENT, "rate", text)
    precision = PRECISIONS.get(request.precision)
    if precision is None:
        text = f"{request.precision} is not one of 1 (fp32), 2 (fp16), 3 (int8)"
        raise RequestError(grpc.StatusCode.INVALID_ARGUMENT, "precision", text)
    try:
        return decode_features(request.features, heads.feature_width, request.rate, precision)
    except FeatureError as error:
        field, _, text = str(error).partition(": ")
        raise RequestError(grpc.StatusCode.INVALID_ARGUMENT, field, text) from None


def _parser(kind: type[pb.DescribeRequest] | type[pb.ClassifyRequest]) -> Callable[[bytes], Message | None]:
    """Bytes -> message, or None if they are not one; gRPC itself would end the whole stream."""

    def parse(content: bytes) -> Message | None:
        try:
            return kind.FromString(content)
        except DecodeError:
            return None

    return parse


def counted(service: InferenceService) -> dict[str, int]:
    """The counters as plain numbers, for a status page."""
    return {**asdict(service.counters), "batches": service.batcher.batches}
