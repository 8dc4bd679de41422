"""10,000 mutated messages per call against the running inference service: each is answered, nothing breaks or changes.

Seeded mutations of bytes and of single fields. An error must name the field that was mutated, and a good request
must get the same answer afterwards as before.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import grpc
import numpy as np
import pytest
from helpers.fuzz import FACTOR
from helpers.inference import (
    AUDIO,
    CLASSES,
    FRAMES,
    VERSION,
    WIDTH,
    MadeRuntime,
    made_heads,
    wait_until,
)
from hypothesis import given
from hypothesis import strategies as st

from fedstill.cloud_server.auth.tokens import TokenError
from fedstill.cloud_server.edge_inference.heads import HeadStore
from fedstill.cloud_server.edge_inference.inference_server import LARGEST_REQUEST, InferenceServer
from fedstill.cloud_server.edge_inference.inference_service import SERVICE, InferenceService, counted
from fedstill.cloud_server.edge_inference.micro_batching import Batching, QueueFull
from fedstill.edge_client.inference.cloud_connection import CloudConnection
from fedstill.edge_client.inference.cloud_inference import EdgeInference
from fedstill.edge_client.inference.cloud_stream import Address
from fedstill.models.audiovisual.levels import RATES, Precision, compressed_payload_bytes
from fedstill.protos import edge_inference_pb2 as pb
from fedstill.protos.features import FeatureError, FeatureVectors, decode_features, encode_features

MESSAGES, STREAMS = 10_000 * FACTOR, 10
DEVICE, TOKEN = "node-0", "the token of node-0"
BEARER = (("authorization", f"Bearer {TOKEN}"),)
FIELDS = {"message", "device", "student_version", "rate", "precision", "features"}
REFUSALS = {3, 5, 7}  # invalid argument, not found, permission denied
Result = TypeVar("Result")


def good(random_: random.Random | None = None, sequence: int = 1) -> pb.ClassifyRequest:
    draw = random_ or random.Random(0)
    rate, precision = draw.choice(RATES), draw.choice((pb.FP32, pb.FP16, pb.INT8))
    width = int(WIDTH / rate)
    values = np.random.default_rng(draw.getrandbits(32)).normal(size=(2, width)).astype(np.float32)
    features = encode_features(FeatureVectors(*values), list(Precision)[precision - 1])
    return pb.ClassifyRequest(
        sequence=sequence,
        device=DEVICE,
        student_version=VERSION,
        rate=rate,
        precision=precision,
        features=features,
    )


def mutate_bytes(content: bytes, draw: random.Random) -> bytes:
    """A few flips, cuts, insertions, repetitions, or noise."""
    found = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        where = draw.randrange(len(found) + 1)
        match draw.randrange(6):
            case 0 if where < len(found):
                found[where] ^= 1 << draw.randrange(8)
            case 1:
                del found[where : where + draw.randint(1, 64)]
            case 2:
                found[where:where] = draw.randbytes(draw.randint(1, 16))
            case 3:
                found = found[:where]
            case 4:
                found[where:where] = found[: draw.randint(0, 200)]
            case _:
                found[:8] = draw.randbytes(8)
    return bytes(found)


def odd_text(draw: random.Random) -> str:
    return draw.choice(
        ["", "\0", "../../etc/passwd", "é" * 60, "x" * 5000, VERSION[:-1], VERSION + "0", "node-1", " "]
    )


def odd_rate(draw: random.Random) -> float:
    return draw.choice(
        [float("nan"), float("inf"), -float("inf"), 0.0, -1.0, 0.5, 1.4999, 7.0, 1e308, 5e-324]
    )


def odd_features(content: bytes, draw: random.Random) -> bytes:
    match draw.randrange(4):
        case 0:
            return mutate_bytes(content, draw)
        case 1:
            return draw.randbytes(len(content))
        case 2:
            return b"\xff" * len(content)
        case _:
            return content + b"\0" * draw.choice([1, 4, 4096])


def mutated(number: int, draw: random.Random) -> tuple[bytes, set[str]]:
    """A message, and the fields that an error about it may name."""
    request = good(draw, number)
    match draw.randrange(7):
        case 0:
            request.device = odd_text(draw)
            return request.SerializeToString(), {"device"}
        case 1:
            request.student_version = odd_text(draw)
            return request.SerializeToString(), {"student_version"}
        case 2:
            request.rate = odd_rate(draw)
            return request.SerializeToString(), {"rate"}
        case 3:
            request.precision = draw.choice([0, 4, 99, -1, 2**31 - 1])  # type: ignore[assignment]
            return request.SerializeToString(), {"precision"}
        case 4:
            request.features = odd_features(request.features, draw)
            return request.SerializeToString(), {"features"}
        case _:
            return mutate_bytes(request.SerializeToString(), draw), FIELDS


revoked: set[str] = set()


def authorise(token: str) -> str:
    if token != TOKEN or token in revoked:
        raise TokenError("token is not one of this server's")
    return DEVICE


class Running:
    """The service on a port, a channel to it, and its two calls on plain bytes."""

    def __init__(self, service: InferenceService, folder: Path, port: int, channel: grpc.aio.Channel) -> None:
        self.service, self.folder, self.port = service, folder, port
        self._stream = channel.stream_stream(
            f"/{SERVICE}/Classify", response_deserializer=pb.ClassifyResponse.FromString
        )
        self._unary = channel.unary_unary(f"/{SERVICE}/Describe")

    async def classify(self, messages: list[bytes]) -> list[pb.ClassifyResponse]:
        async def sending() -> AsyncIterator[bytes]:
            for message in messages:
                yield message

        return [response async for response in self.stream(sending())]

    def stream(self, messages: AsyncIterator[bytes]) -> AsyncIterator[pb.ClassifyResponse]:
        return self._stream(messages, metadata=BEARER, timeout=120)

    async def describe(self, message: bytes) -> tuple[grpc.StatusCode, str]:
        try:
            await self._unary(message, metadata=BEARER, timeout=120)
        except grpc.aio.AioRpcError as error:
            return error.code(), error.details() or ""
        return grpc.StatusCode.OK, ""

    async def good_answer(self) -> list[float]:
        (response,) = await self.classify([good().SerializeToString()])
        return list(response.answer.probabilities)


def with_service(
    tmp_path: Path,
    work: Callable[[Running], Coroutine[Any, Any, Result]],
    batching: Batching = Batching(),  # noqa: B008, it is frozen
) -> Result:
    folder = made_heads(tmp_path / "heads")

    async def run() -> Result:
        service = InferenceService(HeadStore(folder), authorise, batching)
        server = InferenceServer(service, "127.0.0.1:0", None)
        port = await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                return await asyncio.wait_for(work(Running(service, folder, port, channel)), 240)
        finally:
            await server.stop()

    return asyncio.run(run())


def files(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.slow
def test_mutated_clips(tmp_path: Path) -> None:
    async def attack(running: Running) -> Counter[str]:
        before, disk = await running.good_answer(), files(running.folder)
        outcomes: Counter[str] = Counter()
        for stream in range(STREAMS):
            draw = random.Random(stream)
            cases = [mutated(number, draw) for number in range(MESSAGES // STREAMS)]
            responses = await running.classify([message for message, _ in cases])
            assert len(responses) == len(cases)
            for (message, fields), response in zip(cases, responses, strict=True):
                outcomes[check(message, fields, response)] += 1
        assert await running.good_answer() == before
        assert files(running.folder) == disk
        done = counted(running.service)
        assert done["answered"] + done["refused"] + done["echoes"] == MESSAGES + 2
        return outcomes

    outcomes = with_service(tmp_path, attack)
    assert outcomes.total() == MESSAGES
    assert set(outcomes) >= FIELDS | {"answer"}, outcomes  # every kind of refusal was met


def check(message: bytes, fields: set[str], response: pb.ClassifyResponse) -> str:
    """Which outcome; AssertionError where it is not right."""
    kind = response.WhichOneof("outcome")
    if kind == "error":
        assert response.error.code in REFUSALS, (message, response)
        assert response.error.field in fields, (message, response)
        assert response.error.message
        assert "\n" not in response.error.message
        return response.error.field
    assert kind in ("answer", "echo"), (message, response)
    assert "features" in fields, (message, response)  # other features may be good ones, nothing else may
    if kind == "answer":
        probabilities = np.array(response.answer.probabilities)
        assert probabilities.shape == (len(CLASSES),)
        assert np.isfinite(probabilities).all()
        assert probabilities.sum() == pytest.approx(1, abs=1e-5)
    return kind


@pytest.mark.slow
def test_mutated_descriptions(tmp_path: Path) -> None:
    async def attack(running: Running) -> Counter[grpc.StatusCode]:
        draw, outcomes = random.Random(99), Counter[grpc.StatusCode]()
        for start in range(0, MESSAGES, 100):
            cases = []
            for _ in range(100):
                request = pb.DescribeRequest(device=DEVICE, student_version=VERSION)
                kind = draw.randrange(3)
                if kind == 0:
                    request.device = odd_text(draw)
                elif kind == 1:
                    request.student_version = odd_text(draw)
                content = request.SerializeToString()
                fields = ({"device"}, {"student_version"}, {"device", "student_version", "message"})[kind]
                cases.append((mutate_bytes(content, draw) if kind == 2 else content, fields))
            replies = await asyncio.gather(*(running.describe(message) for message, _ in cases))
            for (message, fields), (code, text) in zip(cases, replies, strict=True):
                outcomes[code] += 1
                if code is not grpc.StatusCode.OK:
                    assert code.value[0] in REFUSALS, (message, code, text)
                    assert text.partition(":")[0] in fields, (start, message, text)
        assert await running.describe(
            pb.DescribeRequest(device=DEVICE, student_version=VERSION).SerializeToString()
        ) == (
            grpc.StatusCode.OK,
            "",
        )
        return outcomes

    outcomes = with_service(tmp_path, attack)
    assert outcomes.total() == MESSAGES
    assert len(outcomes) >= 3, outcomes


def test_a_message_beyond_the_limit_ends_its_stream_and_nothing_else(tmp_path: Path) -> None:
    async def attack(running: Running) -> None:
        before = await running.good_answer()
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await running.classify([b"\0" * (LARGEST_REQUEST + 1)])
        assert failure.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await running.good_answer() == before

    with_service(tmp_path, attack)


def test_a_bad_request_leaves_its_stream_usable_and_answers_keep_their_order(tmp_path: Path) -> None:
    async def mixed(running: Running) -> list[pb.ClassifyResponse]:
        messages = [good(random.Random(number), number).SerializeToString() for number in range(100)]
        messages[10::20] = [b"\xff\xff"] * 5
        return await running.classify(messages)

    responses = with_service(tmp_path, mixed)
    bad = [place for place, one in enumerate(responses) if one.WhichOneof("outcome") == "error"]
    assert bad == [10, 30, 50, 70, 90]
    assert [one.sequence for one in responses if one.HasField("answer")] == [
        n for n in range(100) if n not in bad
    ]
    assert {one.answer.path for one in responses if one.HasField("answer")} == {"cloud"}


def test_a_token_that_is_revoked_while_its_stream_lives_is_refused(tmp_path: Path) -> None:
    async def before_and_after(running: Running) -> list[pb.ClassifyResponse]:
        responses = []

        async def sending() -> AsyncIterator[bytes]:
            yield good(sequence=1).SerializeToString()
            while not responses:
                await asyncio.sleep(0.01)
            revoked.add(TOKEN)
            yield good(sequence=2).SerializeToString()

        async for response in running.stream(sending()):
            responses.append(response)
        return responses

    try:
        first, second = with_service(tmp_path, before_and_after)
    finally:
        revoked.clear()
    assert first.WhichOneof("outcome") == "answer"
    assert (second.error.code, second.error.field) == (16, "authorization")


def test_a_full_queue_is_an_error_with_a_hint_and_no_clip_is_lost(tmp_path: Path) -> None:
    async def flood(running: Running) -> list[pb.ClassifyResponse]:
        return await running.classify([good(sequence=number).SerializeToString() for number in range(64)])

    responses = with_service(tmp_path, flood, Batching(window_seconds=0.05, waiting=1))
    assert [one.sequence for one in responses] == list(range(64))
    busy = [one.error for one in responses if one.HasField("error")]
    assert {error.code for error in busy} == {8}
    assert all(error.retry_milliseconds >= 1 for error in busy)
    assert any(one.HasField("answer") for one in responses)


def test_a_device_leaves_a_busy_cloud_alone_for_as_long_as_it_was_told(tmp_path: Path) -> None:
    pause = 3_600_000  # ms

    async def refuse(*_: object) -> None:
        raise QueueFull(pause)

    def classify_twice(port: int) -> list[str]:
        runtime = MadeRuntime()
        address = Address(f"127.0.0.1:{port}", DEVICE, TOKEN)
        connection = CloudConnection(address, runtime.version, runtime.class_names)
        connection.start()
        try:
            wait_until(lambda: connection.estimate.up)
            inference = EdgeInference(runtime, connection, objective_ms=10_000)
            return [inference.classify(AUDIO, FRAMES).route.reason for _ in range(2)]
        finally:
            connection.close()

    async def busy(running: Running) -> list[str]:
        running.service.batcher.classify = refuse  # type: ignore[method-assign, assignment]
        return await asyncio.to_thread(classify_twice, running.port)

    first, second = with_service(tmp_path, busy)
    assert first == f"refused (busy: try again in {pause} ms)"
    assert second == "cloud busy"


@given(
    st.sampled_from(RATES),
    st.sampled_from(Precision),
    st.integers(1, 64),
    st.data(),
)
def test_any_bytes_decode_to_sane_features_or_an_error(
    rate: float, precision: Precision, width: int, data: st.DataObject
) -> None:
    size = compressed_payload_bytes(width, rate, precision)
    payload = data.draw(st.binary(min_size=size, max_size=size) | st.binary(max_size=300))
    try:
        features = decode_features(payload, width, rate, precision)
    except FeatureError as found:
        refusal = str(found)
    else:
        assert len(payload) == size
        assert {vector.shape for vector in features} == {(int(width / rate),)}
        encode_features(features, Precision.FP32)  # finite and of encoder size
        return
    assert refusal.startswith("features: ")
