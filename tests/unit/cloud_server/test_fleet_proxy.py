"""Guards the fleet proxy: twelve routes, streamed, bounded and counted; nothing else reaches Flower."""

from __future__ import annotations

import base64
import json
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from helpers.proxy import Proxy, Upstream, proxy, upstream
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedstill.cloud_server.auth.authority import create_authority
from fedstill.cloud_server.coordinator.fleet_proxy import FLEET, ROUTES, ProxySettings, _head_bytes
from fedstill.cloud_server.journal.traffic import (
    RouteTraffic,
    TrafficCounters,
    TrafficError,
    read_traffic,
    wire_bytes,
)
from fedstill.common.credentials import fingerprint

MEBIBYTE = 2**20


@pytest.fixture(scope="module")
def behind() -> Iterator[Upstream]:
    """The stand-in for the SuperLink."""
    with upstream() as state:
        yield state


@pytest.fixture(autouse=True)
def forget(request: pytest.FixtureRequest) -> None:
    """Each test begins with a stand-in that answers 200 and was asked nothing."""
    if "behind" in request.fixturenames or "endpoint" in request.fixturenames:
        state: Upstream = request.getfixturevalue("behind")
        state.asked.clear()
        state.headers.clear()
        state.status, state.answer_bytes, state.promised_bytes = 200, 0, None
        state.silent.clear()


@pytest.fixture(scope="module")
def endpoint(behind: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy without TLS before it."""
    folder = tmp_path_factory.mktemp("endpoint")
    given = ProxySettings(
        "127.0.0.1", 0, f"http://127.0.0.1:{behind.port}", body_limit=100 * MEBIBYTE, idle_seconds=3.0
    )
    with proxy(folder, given) as running:
        yield running


def post(endpoint: Proxy, target: str = f"{FLEET}get-run", **how: object) -> httpx.Response:
    return httpx.post(f"http://127.0.0.1:{endpoint.port}{target}", timeout=30, trust_env=False, **how)  # type: ignore[arg-type]


def raw(port: int, request: bytes) -> bytes:
    """What comes back on a bare connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as line:
        line.sendall(request)
        answer = b""
        while b"\r\n\r\n" not in answer and (piece := line.recv(65536)):
            answer += piece
    return answer


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def test_the_routes_are_those_of_the_installed_flower() -> None:
    from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES

    theirs = {path for method, path in PROTOBUF_REQUEST_TYPES if path.startswith(FLEET) and method == "POST"}
    assert {f"{FLEET}{route}" for route in ROUTES} == theirs


@pytest.mark.parametrize("route", ROUTES)
def test_every_fleet_route_passes(endpoint: Proxy, behind: Upstream, route: str) -> None:
    behind.answer_bytes = 7
    answer = post(endpoint, f"{FLEET}{route}", content=b"body", headers={"flwr-signature": "abc"})
    assert (answer.status_code, answer.content) == (200, b"d" * 7)
    ((target, headers, size),) = behind.asked
    assert (target, size, headers["flwr-signature"]) == (f"{FLEET}{route}", 4, "abc")
    assert headers["host"] == f"127.0.0.1:{behind.port}"


TARGETS = [
    "/", "/health", "/docs", "/openapi.json", "/v1", "/v1/fleet", "/v1/fleet/", "/v1/fleet/unknown",
    "/v1/control/start-run", "/v1/control/list-runs", "/v1/runtime/acquire-task",
    "/v1/fleet/../control/start-run", "/v1/fleet/get-run/../../control/start-run",
    "/v1/fleet/%2e%2e/control/start-run", "/v1/fleet/%2E%2E/control/start-run",
    "/v1/fleet/..%2fcontrol/start-run", "/v1/fleet/..%252fcontrol/start-run", "/v1/fleet/..%5ccontrol/start-run",
    "/v1/fleet/..;/control/start-run", "/v1/fleet//get-run", "//v1/fleet/get-run", "/v1//fleet/get-run",
    "/v1/fleet/./get-run", "/v1/fleet/get-run/", "/v1/fleet/get-run;x", "/v1/fleet/get%2drun", "/V1/FLEET/GET-RUN",
    "/v1/Fleet/get-run", "/v1/fleet/get-run?x=1", "/v1/fleet/get-run?/../../control/start-run",
    "/v1/fleet/get-run%00", "/v1/fleet/get-run%20", "/v1/fleet/get-run%0d%0aHost:%20x", "/v1\\fleet\\get-run",
    "http://127.0.0.1/v1/control/start-run", "http://127.0.0.1/v1/fleet/../control/start-run", "*", "evil:443",
]  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
def test_no_other_target_passes(endpoint: Proxy, behind: Upstream, target: str) -> None:
    answer = raw(endpoint.port, f"POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
    assert status(answer) in (400, 404)
    assert behind.asked == []


@pytest.mark.parametrize(
    "method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "CONNECT", "TRACE", "PATCH", "post", "X"]
)
@pytest.mark.parametrize("target", [f"{FLEET}get-run", "/v1/control/start-run"])
def test_no_other_method_passes(endpoint: Proxy, behind: Upstream, method: str, target: str) -> None:
    answer = raw(
        endpoint.port, f"{method} {target} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode()
    )
    assert status(answer) in (400, 404)
    assert behind.asked == []


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    target=st.one_of(
        st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=60),
        st.lists(st.sampled_from(["..", "%2e", "%2f", "/", "//", "v1", "V1", "fleet", "control", "runtime", ".", ";",
                                  "start-run", "get-run", "?", "#", "%00", "\\", "http:", "@", "localhost"]))
        .map(lambda parts: "/" + "/".join(parts)),
    )
)  # fmt: skip
def test_whatever_the_target_only_a_listed_path_is_asked(
    endpoint: Proxy, behind: Upstream, target: str
) -> None:
    behind.asked.clear()
    raw(endpoint.port, f"POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
    assert {asked for asked, _, _ in behind.asked} <= {f"{FLEET}{route}" for route in ROUTES}


def test_an_absolute_target_is_asked_at_our_upstream_only(endpoint: Proxy, behind: Upstream) -> None:
    """RFC 9112 lets a client name the whole URI; its host must not decide where the request goes."""
    line = f"POST http://elsewhere.example.org{FLEET}get-run HTTP/1.1"
    answer = raw(
        endpoint.port, f"{line}\r\nHost: elsewhere.example.org\r\nContent-Length: 0\r\n\r\n".encode()
    )
    assert status(answer) in (200, 404)
    assert all(headers["host"] == f"127.0.0.1:{behind.port}" for _, headers, _ in behind.asked)


@pytest.mark.parametrize(
    "lines",
    [
        ["Content-Length: 4", "Transfer-Encoding: chunked"],
        ["Content-Length: 4", "Content-Length: 60"],
        ["Transfer-Encoding: chunked, identity"],
        ["Content-Length: -1"],
        ["Content-Length: 4\x00"],
    ],
)
def test_a_second_request_cannot_be_smuggled(endpoint: Proxy, behind: Upstream, lines: list[str]) -> None:
    inner = b"POST /v1/control/start-run HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
    head = "\r\n".join([f"POST {FLEET}get-run HTTP/1.1", "Host: x", *lines]).encode()
    raw(endpoint.port, head + b"\r\n\r\n0\r\n\r\n" + inner)
    assert all(target == f"{FLEET}get-run" for target, _, _ in behind.asked)


def test_headers_of_one_hop_stay_there(endpoint: Proxy, behind: Upstream) -> None:
    behind.headers.update(
        {"Set-Cookie": "a=b", "X-Kept": "yes", "Connection": "X-Dropped", "X-Dropped": "no"}
    )
    sent = {"Connection": "keep-alive, X-Hop", "X-Hop": "1", "Cookie": "c=d", "TE": "trailers", "X-End": "2"}
    answer = post(endpoint, headers=sent)
    headers = behind.asked[0][1]
    assert {"x-hop", "cookie", "te", "connection"}.isdisjoint(headers)
    assert headers["x-end"] == "2"
    assert answer.headers["x-kept"] == "yes"
    assert {"set-cookie", "x-dropped"}.isdisjoint(answer.headers)


def peak(endpoint: Proxy) -> int:
    """Largest resident memory of the proxy so far, bytes."""
    told = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{endpoint.process.pid}/status").read_text())
    assert told is not None
    return int(told[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_ninety_mebibytes_stream_both_ways(endpoint: Proxy, behind: Upstream) -> None:
    post(endpoint)
    before = peak(endpoint)
    behind.answer_bytes = 90 * MEBIBYTE
    pieces = (b"u" * MEBIBYTE for _ in range(90))
    answer = post(endpoint, content=pieces)
    assert len(answer.content) == 90 * MEBIBYTE
    assert behind.asked[-1][2] == 90 * MEBIBYTE
    assert peak(endpoint) - before < 30 * MEBIBYTE


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_beyond_the_limit_is_refused(endpoint: Proxy, behind: Upstream, announced: bool) -> None:
    size = 101 * MEBIBYTE
    if announced:
        head = f"POST {FLEET}push-object HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n"
        assert status(raw(endpoint.port, head.encode())) == 413
        assert behind.asked == []
        return
    with socket.create_connection(("127.0.0.1", endpoint.port), timeout=20) as line:
        line.sendall(
            f"POST {FLEET}push-object HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        )
        piece = f"{MEBIBYTE:x}\r\n".encode() + b"u" * MEBIBYTE + b"\r\n"
        try:
            for _ in range(102):
                line.sendall(piece)
            answer = line.recv(4096)
        except (BrokenPipeError, ConnectionResetError):
            answer = b"HTTP/1.1 413"  # hung up while we still sent
    assert status(answer) == 413
    assert all(read < size for _, _, read in behind.asked)


def test_a_device_that_stops_sending_is_let_go(endpoint: Proxy, behind: Upstream) -> None:
    head = f"POST {FLEET}push-object HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf"
    assert status(raw(endpoint.port, head.encode())) == 408
    assert post(endpoint).status_code == 200


def test_a_silent_superlink_is_a_504(endpoint: Proxy, behind: Upstream) -> None:
    behind.silent.set()
    assert post(endpoint).status_code == 504
    behind.silent.clear()
    assert post(endpoint).status_code == 200


def test_half_an_answer_is_not_taken_for_a_whole_one(endpoint: Proxy, behind: Upstream) -> None:
    behind.answer_bytes, behind.promised_bytes = 10_000, 20_000
    with pytest.raises(httpx.RemoteProtocolError):
        post(endpoint)
    behind.promised_bytes = None
    assert post(endpoint).status_code == 200


@pytest.mark.parametrize("code", [401, 403, 404, 500])
def test_the_superlinks_own_refusals_pass_unchanged(endpoint: Proxy, behind: Upstream, code: int) -> None:
    behind.status = code
    assert post(endpoint).status_code == code


def test_without_a_superlink_it_says_503_and_recovers(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        given = ProxySettings("127.0.0.1", 0, f"http://127.0.0.1:{closed.getsockname()[1]}")
        with proxy(tmp_path, given) as running:
            answer = post(running)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
    assert "Traceback" not in running.log_file.read_text()


@pytest.fixture
def node_key() -> tuple[str, str]:
    """A node's key as Flower's header has it, and its fingerprint."""
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(pem).decode("ascii"), fingerprint(key)


def test_the_head_of_a_request_and_of_an_answer_is_what_is_on_the_wire() -> None:
    headers = [(b"host", b"cloud:9092"), (b"content-length", b"5")]
    request = b"POST /v1/fleet/push-object HTTP/1.1\r\nhost: cloud:9092\r\ncontent-length: 5\r\n\r\n"
    assert _head_bytes(headers, b"/v1/fleet/push-object") == len(request)
    assert _head_bytes(headers[1:]) == len(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n")


def test_counts_of_an_older_proxy_go_on(tmp_path: Path) -> None:
    path = tmp_path / "traffic.json"
    older = {"peer": "SHA256:abc", "route": "push-object", "requests": 3, "bytes_up": 30, "bytes_down": 7}
    path.write_text(json.dumps({"traffic": [older]}))
    counters = TrafficCounters(path)
    counters.add("SHA256:abc", "push-object", 10, 1, 200, 100)
    counters.add("SHA256:def", "pull-object", 1, 2, 3, 4)
    counters.save()
    assert (
        read_traffic(path)
        == counters.totals()
        == (
            RouteTraffic("SHA256:abc", "push-object", 4, 40, 8, 200, 100),
            RouteTraffic("SHA256:def", "pull-object", 1, 1, 2, 3, 4),
        )
    )
    of = wire_bytes(path)
    assert of(["SHA256:abc"]) == (240, 108)
    assert of(["SHA256:def", "SHA256:abc"]) == (244, 114)
    assert of([]) == of(["SHA256:other"]) == (None, None)
    path.write_text("damaged")
    assert wire_bytes(path)(["SHA256:abc"]) == wire_bytes(tmp_path / "no")(["SHA256:abc"]) == (None, None)


def test_tls_counts_by_node_and_survives_a_restart(
    tmp_path: Path, behind: Upstream, node_key: tuple[str, str]
) -> None:
    authority = create_authority(tmp_path / "certs")
    traffic = tmp_path / "traffic.json"
    given = ProxySettings(
        "127.0.0.1", 0, f"http://127.0.0.1:{behind.port}",
        certificate_file=str(authority.certificate_file), key_file=str(authority.key_file), traffic_file=str(traffic),
    )  # fmt: skip
    trust = ssl.create_default_context(cafile=str(authority.ca_file))
    behind.answer_bytes = 300
    for _ in range(2):
        with (
            proxy(tmp_path / "run", given) as running,
            httpx.Client(
                base_url=f"https://localhost:{running.port}", verify=trust, trust_env=False
            ) as client,
        ):
            client.post(f"{FLEET}push-object", content=b"u" * 1000, headers={"flwr-public-key": node_key[0]})
            behind.status = 401
            client.post(f"{FLEET}push-object", content=b"u" * 5, headers={"flwr-public-key": node_key[0]})
            behind.status = 200
        assert running.process.returncode == 0
    (found,) = read_traffic(traffic)
    assert replace(found, head_up=0, head_down=0) == RouteTraffic(node_key[1], "push-object", 2, 2000, 600)
    assert 2 * len(node_key[0]) < found.head_up < 2 * (len(node_key[0]) + 300), "first line and headers"
    assert 2 * len("HTTP/1.1 200 OK\r\n\r\n") <= found.head_down < 600
    assert (found.up, found.down) == (2000 + found.head_up, 600 + found.head_down)
    assert node_key[0] not in running.log_file.read_text()


def test_a_stranger_and_plain_text_get_nothing_from_tls(tmp_path: Path, behind: Upstream) -> None:
    ours, theirs = create_authority(tmp_path / "ours"), create_authority(tmp_path / "theirs")
    given = ProxySettings(
        "127.0.0.1", 0, f"http://127.0.0.1:{behind.port}",
        certificate_file=str(ours.certificate_file), key_file=str(ours.key_file),
    )  # fmt: skip
    with proxy(tmp_path / "run", given) as running:
        trust = ssl.create_default_context(cafile=str(theirs.ca_file))
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.post(f"https://localhost:{running.port}{FLEET}get-run", verify=trust, trust_env=False)
        assert raw(running.port, f"POST {FLEET}get-run HTTP/1.1\r\nHost: x\r\n\r\n".encode()) == b""
    assert behind.asked == []


def test_a_forged_superlink_is_refused(tmp_path: Path) -> None:
    """Something else took the SuperLink's port: its certificate is another authority's."""
    ours, theirs = create_authority(tmp_path / "ours"), create_authority(tmp_path / "theirs")
    with upstream() as behind:
        forged = ProxySettings(
            "127.0.0.1", 0, f"http://127.0.0.1:{behind.port}",
            certificate_file=str(theirs.certificate_file), key_file=str(theirs.key_file),
        )  # fmt: skip
        with proxy(tmp_path / "forged", forged) as impostor:
            honest = ProxySettings(
                "127.0.0.1", 0, f"https://127.0.0.1:{impostor.port}", ca_file=str(ours.ca_file)
            )
            with proxy(tmp_path / "run", honest) as running:
                assert post(running).status_code == 503
            with proxy(tmp_path / "run", replace(honest, ca_file=str(theirs.ca_file))) as running:
                assert post(running).status_code == 200


def test_a_request_under_way_is_finished_at_sigterm(tmp_path: Path, behind: Upstream) -> None:
    given, begun = ProxySettings("127.0.0.1", 0, f"http://127.0.0.1:{behind.port}"), behind.begun
    with proxy(tmp_path, given) as running, socket.create_connection(("127.0.0.1", running.port), 20) as line:
        line.sendall(f"POST {FLEET}get-run HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nha".encode())
        while behind.begun == begun:
            time.sleep(0.02)
        running.process.send_signal(signal.SIGTERM)
        line.sendall(b"lf")
        assert status(line.recv(4096)) == 200
    assert running.process.returncode == 0


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        ("{", 2, "SETTINGS"),
        ('{"host": "127.0.0.1"}', 2, "port: missing"),
        ('{"host": "127.0.0.1", "port": 0, "upstream": "x"}', 2, "upstream: starts with"),
        ('{"host": "127.0.0.1", "port": 0, "upstream": "https://x"}', 2, "ca_file: "),
        ('{"host": "127.0.0.1", "port": 0, "upstream": "http://x", "prot": 1}', 2, "did you mean port"),
        ('{"host": "192.0.2.1", "port": 0, "upstream": "http://x"}', 1, "listen=192.0.2.1:0"),
    ],
)
def test_a_mistake_ends_the_process_with_one_line(
    tmp_path: Path, content: str, code: int, message: str
) -> None:
    (tmp_path / "SETTINGS").write_text(content)
    done = subprocess.run(
        [sys.executable, "-m", "fedstill.cloud_server.coordinator.fleet_proxy", str(tmp_path / "SETTINGS")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == code
    assert len(done.stderr.strip().splitlines()) == 1
    assert message in done.stderr


def test_damaged_counts_are_named(tmp_path: Path) -> None:
    path = tmp_path / "traffic.json"
    assert read_traffic(path) == ()
    path.write_text(json.dumps({"traffic": [{"peer": 1}]}))
    with pytest.raises(TrafficError, match=r"traffic\.json: damaged"):
        TrafficCounters(path)
