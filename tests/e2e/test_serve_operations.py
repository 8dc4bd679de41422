"""``fedstill serve`` as operators run it: from a configuration file, with their own certificates, to an end without a
lost request."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from helpers.pki import Identity, made
from helpers.serve_process import Place, Serve, announced, make_place, serving
from helpers.serving import png

from fedstill.client.serving_client import ServingAddress, ServingClient, ServingError
from fedstill.cloud_server.auth.authority import create_authority, issue_node

pytestmark = pytest.mark.slow

LENGTH = "Inference-Header-Content-Length"


@dataclass(frozen=True)
class Operated:
    """A server of an operator's own authority, which its clients have certificates of, too."""

    server: Serve
    file: Path
    root: Identity
    client: Identity
    token: str
    guest: str
    web: str
    rest: str
    https: httpx.Client

    @property
    def address(self) -> ServingAddress:
        return ServingAddress(
            self.server.target, self.root.pem, self.token, self.client.pem, self.client.key_pem
        )

    def health(self) -> int:
        credentials = grpc.ssl_channel_credentials(self.root.pem, self.client.key_pem, self.client.pem)
        with grpc.secure_channel(self.server.target, credentials) as channel:
            asked = health_pb2.HealthCheckRequest(service="inference.GRPCInferenceService")
            return int(health_pb2_grpc.HealthStub(channel).Check(asked, timeout=30).status)


@contextmanager
def operated(place: Place, *typed: str) -> Iterator[Operated]:
    """All of it by a configuration file, but what is typed."""
    folder = place.folder
    authority = create_authority(folder / "authority")
    for name in ("shop", "guest"):
        issue_node(authority.directory, name)
    token, guest = (
        (authority.directory / "nodes" / name / "token").read_text().strip() for name in ("shop", "guest")
    )
    root = made("own", authority=True)
    client = made("client", root)
    certificate, key = made("server", root).write(folder, "server")
    (folder / "ca.crt").write_bytes(root.pem)
    (folder / "serve.toml").write_text(
        f'authority = "{authority.directory}"\nweb = "127.0.0.1:0"\nrest = "127.0.0.1:0"\nlame-duck = 7\n'
        'log-format = "json"\nrate-limit = ["guest=0.01:2"]\n'
        f'tls-certificate = "{certificate}"\ntls-key = "{key}"\nclient-ca = "{folder / "ca.crt"}"\n'
        f'profile = "{folder / "profile.json"}"\n'
    )
    trust = ssl.create_default_context(cadata=root.pem.decode())
    trust.load_cert_chain(*client.write(folder, "client"))
    with serving(place, "--config", str(folder / "serve.toml"), *typed) as server:
        file = place.state / "serve" / "server.json"
        said = announced(file)
        web, rest = f"http://127.0.0.1:{said['web_port']}", f"https://127.0.0.1:{said['rest_port']}"
        with httpx.Client(verify=trust, timeout=30) as https:
            yield Operated(server, file, root, client, token, guest, web, rest, https)


def test_an_operated_server_from_its_configuration_to_its_end(tmp_path: Path) -> None:
    place = make_place(tmp_path)
    with operated(place, "--lame-duck", "600") as one:
        only_clients_with_certificate_and_token(one)
        a_guest_is_limited(one)
        assert one.health() == health_pb2.HealthCheckResponse.SERVING
        assert httpx.head(f"{one.web}/readyz").status_code == 200
        one.server.process.terminate()
        a_lame_duck_is_not_ready_and_answers(one)
        assert one.server.end() == 0  # the second signal
        log = one.server.log.read_text()
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    by_event = {line.get("event"): line for line in lines}
    configured = by_event["configuration"]["message"]
    assert f"file={tmp_path / 'serve.toml'} " in configured
    assert 'rest="127.0.0.1:0"' in configured  # of the file
    assert "lame-duck=600.0" in configured  # typed
    assert "event=lame_duck seconds=600" in log
    assert "everyone_answered=True" in log
    assert by_event["caller_refused"]["request_id"] == "mine-2"
    assert "request_id" not in by_event["stopped"]
    assert one.token not in log
    decided = [json.loads(line) for line in (place.state / "serve" / "decisions.jsonl").open()]
    assert sum(line.get("nodes", {}).get("guest", 0) for line in decided) == 2
    assert sum(line.get("rate_limited", {}).get("guest", 0) for line in decided) == 1
    assert "mine-1" in {name for line in decided for name in line["requests"]}
    assert all(line["versions"] == {"cats": 1} for line in decided)


def only_clients_with_certificate_and_token(one: Operated) -> None:
    with ServingClient(one.address) as client:
        assert client.make_query("cats", png(), latency_ms=20_000).label
    for address, code in (
        (ServingAddress(one.server.target, one.root.pem, one.token), grpc.StatusCode.UNAVAILABLE),
        (
            ServingAddress(one.server.target, one.root.pem, "", one.client.pem, one.client.key_pem),
            grpc.StatusCode.UNAUTHENTICATED,
        ),
    ):
        with ServingClient(address) as client, pytest.raises(ServingError) as caught:
            client.make_query("cats", png(), latency_ms=20_000)
        assert caught.value.code is code
    unnamed = one.https.get(f"{one.rest}/v2/models", headers={"x-request-id": "mine-2"})
    assert (unnamed.status_code, unnamed.headers["x-request-id"]) == (401, "mine-2")
    headers = {"authorization": f"Bearer {one.token}"}
    assert one.https.get(f"{one.rest}/v2/models", headers=headers).status_code == 200


def a_guest_is_limited(one: Operated) -> None:
    headers = {"authorization": f"Bearer {one.guest}", "x-request-id": "mine-1", LENGTH: "0"}
    answers = [
        one.https.post(f"{one.rest}/v2/models/cats/infer", content=png(), headers=headers) for _ in "abc"
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert int(answers[2].headers["retry-after"]) > 60
    shown = httpx.get(f"{one.web}/metrics").text
    assert 'fedstill_serving_limited_queries_total{node="guest",taken="false"} 1.0' in shown


def a_lame_duck_is_not_ready_and_answers(one: Operated) -> None:
    end = time.monotonic() + 30
    while httpx.head(f"{one.web}/readyz").status_code == 200:
        assert time.monotonic() < end
        time.sleep(0.02)
    assert one.health() == health_pb2.HealthCheckResponse.NOT_SERVING
    assert announced(one.file)["ready"] is False
    for path in ("/v2/health/ready", "/v2/models/cats/ready"):
        assert one.https.get(one.rest + path).status_code == 503
    for path in ("/v2/health/live", "/v2/health/startup"):
        assert one.https.get(one.rest + path).status_code == 200
    for path in ("/livez", "/startupz"):
        assert httpx.get(one.web + path).status_code == 200
    with ServingClient(one.address) as client:
        assert client.make_query("cats", png(), latency_ms=20_000).label
    assert one.server.process.poll() is None
