"""Edge inference between real processes: access, and a device's behaviour when the cloud or the link fails."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from helpers.inference import (
    AUDIO,
    CLASSES,
    FRAMES,
    SECRET,
    VERSION,
    MadeRuntime,
    made_certificates,
    made_heads,
    made_server,
    start_cloud,
    token,
    wait_until,
)
from helpers.link import ThrottledProxy

from fedstill.cloud_server.auth.tokens import issue
from fedstill.cloud_server.grpc.listen import ServerError
from fedstill.edge_client.inference.cloud_connection import CloudConnection
from fedstill.edge_client.inference.cloud_inference import Classification, EdgeInference
from fedstill.edge_client.inference.cloud_stream import Address
from fedstill.protos import edge_inference_pb2 as pb
from fedstill.protos.edge_inference_pb2_grpc import EdgeInferenceStub

pytestmark = pytest.mark.slow

DEVICE = "node-0"


class Cloud:
    """The service as a process with TLS and tokens; it can be killed and started again on its port."""

    def __init__(self, folder: Path) -> None:
        self.heads, self.certificates = (
            made_heads(folder / "heads"),
            made_certificates(folder / "certificates"),
        )
        self.log = folder / "cloud.log"
        self.process, self.port = start_cloud(self.heads, self.certificates, log=self.log)

    @property
    def address(self) -> Address:
        authority = (self.certificates / "ca.crt").read_bytes()
        return Address(f"127.0.0.1:{self.port}", DEVICE, token(DEVICE), authority)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(30)

    def restart(self) -> None:
        self.process, _ = start_cloud(self.heads, self.certificates, self.port, self.log)

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    cloud = Cloud(tmp_path_factory.mktemp("cloud"))
    yield cloud
    if cloud.process.poll() is None:
        cloud.kill()


@contextmanager
def device(address: Address, objective_ms: float = 300.0) -> Iterator[tuple[CloudConnection, EdgeInference]]:
    """A device in mode auto. Where nothing limits the objective, 5 s keep a busy machine out of the test."""
    runtime = MadeRuntime()
    connection = CloudConnection(address, runtime.version, runtime.class_names)
    connection.start()
    try:
        yield connection, EdgeInference(runtime, connection, "auto", objective_ms)
    finally:
        connection.close()


def ask(inference: EdgeInference) -> Classification:
    return inference.classify(AUDIO, FRAMES)


def refused(address: Address) -> str:
    """The reason that a device gives for not using the cloud, after trying; it answers all the same."""
    with device(address) as (connection, inference):
        wait_until(lambda: "not connected yet" not in connection.hindrance())
        assert not connection.estimate.up
        answer = ask(inference)
    assert answer.route.path == "local"
    assert answer.probabilities.sum() == pytest.approx(1)
    return answer.route.reason


def test_the_cloud_answers_as_the_local_head_would(cloud: Cloud) -> None:
    with device(cloud.address, 5000) as (connection, inference):
        wait_until(lambda: connection.estimate.up)
        answers = [ask(inference) for _ in range(4)]
    twin = EdgeInference(MadeRuntime(), None, "local")  # draws the same features
    assert {answer.route.path for answer in answers} == {"cloud"}
    assert [answer.route.level_name for answer in answers] == ["3 int8", "1 fp32", "1 fp32", "1 fp32"]
    _, *expected = [ask(twin) for _ in range(4)]  # another head made the first answer
    for answer, local in zip(answers[1:], expected, strict=True):
        np.testing.assert_allclose(answer.probabilities, local.probabilities, atol=1e-5)


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "no token",
        issue(bytes(32), DEVICE, int(time.time()) + 3600),
        issue(SECRET, DEVICE, 1),
    ],
    ids=["none", "nonsense", "forged", "expired"],
)
def test_a_device_without_a_good_token_is_refused(cloud: Cloud, bad: str) -> None:
    assert refused(replace(cloud.address, token=bad)) == "link down (the cloud refuses this device's token)"


def test_a_good_token_is_for_its_own_device_only(cloud: Cloud) -> None:
    assert "refuses this device's name" in refused(replace(cloud.address, device="node-1"))
    with raw(cloud.address) as (stub, metadata):
        request = pb.ClassifyRequest(sequence=5, device="node-1", echo=True)
        (response,) = stub.Classify(iter([request]), metadata=metadata, timeout=30)
    assert (response.sequence, response.error.code, response.error.field) == (5, 7, "device")


def test_a_stream_without_a_token_is_ended_before_its_first_message(cloud: Cloud) -> None:
    with raw(cloud.address) as (stub, _), pytest.raises(grpc.RpcError) as failure:
        list(stub.Classify(iter([pb.ClassifyRequest(device=DEVICE, echo=True)]), timeout=30))
    assert failure.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert "bearer" in failure.value.details()


def test_an_unknown_authority_and_plain_text_are_refused(cloud: Cloud, tmp_path: Path) -> None:
    other = (made_certificates(tmp_path) / "ca.crt").read_bytes()
    for authority in (other, None):
        assert refused(replace(cloud.address, authority=authority)) == "link down (unavailable)"


def test_an_unknown_student_is_answered_locally(cloud: Cloud) -> None:
    connection = CloudConnection(cloud.address, "0" * 64, CLASSES)
    connection.start()
    wait_until(lambda: "does not know this student" in connection.hindrance())
    connection.close()
    connection = CloudConnection(cloud.address, VERSION, CLASSES[::-1])
    connection.start()
    wait_until(lambda: "other classes" in connection.hindrance())
    connection.close()


def test_health_needs_no_token(cloud: Cloud) -> None:
    with grpc.secure_channel(f"127.0.0.1:{cloud.port}", credentials(cloud.address)) as channel:
        request = health_pb2.HealthCheckRequest(service="fedstill.edge_inference.v1.EdgeInference")
        status = health_pb2_grpc.HealthStub(channel).Check(request, timeout=30).status
    assert status == health_pb2.HealthCheckResponse.SERVING


def test_killed_in_the_middle_of_a_stream_and_started_again(cloud: Cloud) -> None:
    with device(cloud.address, 5000) as (connection, inference):
        wait_until(lambda: connection.estimate.up)
        assert ask(inference).route.path == "cloud"
        cloud.kill()
        while_dead = [ask(inference) for _ in range(20)]
        assert {answer.route.path for answer in while_dead} == {"local"}
        assert all(answer.probabilities.sum() == pytest.approx(1) for answer in while_dead)
        cloud.restart()
        wait_until(lambda: connection.estimate.up)
        assert ask(inference).route.path == "cloud"


def test_a_cut_and_a_stalled_link(cloud: Cloud) -> None:
    with ThrottledProxy(("127.0.0.1", cloud.port), 1e6, 0.005) as proxy:
        address = replace(cloud.address, target=f"127.0.0.1:{proxy.port}")
        with device(address, 1000) as (connection, inference):
            for break_it in (proxy.cut, proxy.stall):
                wait_until(lambda: connection.estimate.up)
                wait_until(lambda: ask(inference).route.path == "cloud")
                break_it()
                wait_until(lambda: ask(inference).route.reason.startswith("link down"))
                assert ask(inference).route.path == "local"
                proxy.restore()


def test_sigterm_answers_what_was_taken_and_ends(cloud: Cloud) -> None:
    with raw(cloud.address) as (stub, metadata):
        gone = threading.Event()
        held = stub.Classify(held_open(gone), metadata=metadata, timeout=60)
        first = next(held)
        assert cloud.end() == 0
        assert list(held) == []  # the server ended the open stream in order: no error status
        gone.set()
    assert first.WhichOneof("outcome") == "echo"
    cloud.restart()


def test_the_log_names_refused_callers_but_never_a_secret(cloud: Cloud) -> None:
    forged = issue(bytes(32), DEVICE, int(time.time()) + 3600)
    assert "token" in refused(replace(cloud.address, token=forged))
    log = cloud.log.read_text()
    assert forged.rpartition(".")[2] not in log
    assert "event=caller_refused" in log
    assert token(DEVICE).rpartition(".")[2] not in log
    assert SECRET.hex() not in log
    assert "Traceback" not in log


def test_insecure_serves_without_token_and_a_taken_port_is_one_line(tmp_path: Path) -> None:
    process, port = start_cloud(made_heads(tmp_path), None)
    try:
        with device(Address(f"127.0.0.1:{port}", DEVICE), 5000) as (connection, inference):
            wait_until(lambda: connection.estimate.up)
            assert ask(inference).route.path == "cloud"
        with pytest.raises(ServerError, match="cannot listen here"):
            asyncio.run(made_server(tmp_path, f"127.0.0.1:{port}", None).start())
    finally:
        end(process)


def credentials(address: Address) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(address.authority)


@contextmanager
def raw(address: Address) -> Iterator[tuple[EdgeInferenceStub, list[tuple[str, str]]]]:
    with grpc.secure_channel(address.target, credentials(address)) as channel:
        yield EdgeInferenceStub(channel), [("authorization", f"Bearer {address.token}")]


def held_open(gone: threading.Event) -> Iterator[pb.ClassifyRequest]:
    """One request, and then a stream that stays open."""
    yield pb.ClassifyRequest(device=DEVICE, echo=True)
    gone.wait(60)


def end(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGTERM)
    process.wait(30)


def test_who_insists_on_the_cloud_waits_for_it(cloud: Cloud) -> None:
    runtime = MadeRuntime()
    connection = CloudConnection(cloud.address, runtime.version, runtime.class_names)
    connection.start()
    try:
        assert connection.wait(30)
        assert ask(EdgeInference(runtime, connection, "cloud")).route.path == "cloud"
    finally:
        connection.close()


@pytest.mark.parametrize("seconds", [0.3, 30.0])
def test_who_waits_for_a_cloud_that_is_not_there_or_refuses_does_not_wait_for_ever(
    cloud: Cloud, seconds: float
) -> None:
    absent = Address("127.0.0.1:9", DEVICE, token(DEVICE), cloud.address.authority)
    address = absent if seconds < 1 else replace(cloud.address, token="no token")
    runtime = MadeRuntime()
    connection = CloudConnection(address, runtime.version, runtime.class_names)
    connection.start()
    started = time.monotonic()
    try:
        assert not connection.wait(seconds)
    finally:
        connection.close()
    assert time.monotonic() - started < 20
