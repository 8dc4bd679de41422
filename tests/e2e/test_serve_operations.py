"""``fedstill serve`` as operators run it: from a configuration file, and to its end without a lost request."""

from __future__ import annotations

import time
from pathlib import Path

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from helpers.serve_process import Place, announced, make_place, serving
from helpers.serving import png

from fedstill.client.serving_client import ServingClient

pytestmark = pytest.mark.slow


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return make_place(tmp_path)


def health(target: str) -> int:
    with grpc.insecure_channel(target) as channel:
        asked = health_pb2.HealthCheckRequest(service="inference.GRPCInferenceService")
        return int(health_pb2_grpc.HealthStub(channel).Check(asked, timeout=30).status)


def test_a_lame_duck_is_not_ready_answers_and_leaves_at_the_second_signal(place: Place) -> None:
    file = place.folder / "serve.toml"
    file.write_text(
        'insecure = true\nweb = "127.0.0.1:0"\nrest = "127.0.0.1:0"\nlame-duck = 7\n'
        f'profile = "{place.folder / "profile.json"}"\n'
    )
    with serving(place, "--config", str(file), "--lame-duck", "600") as server:
        said = announced(place.state / "serve" / "server.json")
        web, rest = (f"http://127.0.0.1:{said[name]}" for name in ("web_port", "rest_port"))
        assert health(server.target) == health_pb2.HealthCheckResponse.SERVING
        assert httpx.head(f"{web}/readyz").status_code == 200
        server.process.terminate()
        end = time.monotonic() + 30
        while httpx.head(f"{web}/readyz").status_code == 200:
            assert time.monotonic() < end
            time.sleep(0.02)
        assert health(server.target) == health_pb2.HealthCheckResponse.NOT_SERVING
        for path in ("/v2/health/ready", "/v2/models/cats/ready"):
            assert httpx.get(rest + path).status_code == 503
        for path in (
            f"{rest}/v2/health/live",
            f"{rest}/v2/health/startup",
            f"{web}/livez",
            f"{web}/startupz",
        ):
            assert httpx.get(path).status_code == 200
        with ServingClient(server.address) as client:
            assert client.make_query("cats", png(), latency_ms=20_000).label
            assert server.process.poll() is None
            assert server.end() == 0
        log = server.log.read_text()
    (configured,) = [line for line in log.splitlines() if "event=configuration" in line]
    assert f"file={file} " in configured
    assert 'rest="127.0.0.1:0"' in configured  # of the file
    assert "lame-duck=600.0" in configured  # typed
    assert "event=lame_duck seconds=600" in log
    assert "everyone_answered=True" in log
