"""``fedstill serve --ray`` with a real Ray cluster: a replica is killed, and every request has one fate.

It takes fifty seconds of CPU, so it is part of ``make soak``, beside ``benchmarks/serving/replica_kill.py``, which does
the same at length. What needs no cluster is in ``tests/contract/test_replica_front.py`` and
``tests/unit/serving/test_ray_interfaces.py``.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
from helpers.infer_requests import logits, request
from helpers.ray_cluster import LOOPBACK, needs_ray, ray_cluster, replicas_below
from helpers.serve_process import SIZE, make_place, serving

from fedstill.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub

REFUSED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED)
pytestmark = [
    pytest.mark.slow,
    needs_ray,
    pytest.mark.skipif(
        "FEDSTILL_RAY" not in os.environ, reason="fifty seconds of CPU: FEDSTILL_RAY=1, make soak"
    ),
]


def test_a_killed_replica_costs_no_request_its_answer_or_its_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in LOOPBACK.items():
        monkeypatch.setenv(name, value)
    place = make_place(tmp_path)
    file = place.folder / "profile.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"engine": "torch fp32"}))
    pixels = np.full((1, SIZE, SIZE, 3), 77, np.uint8)
    asked = request(pixels, "pixels", model="cats", latency_ms=30_000)
    with (
        ray_cluster(1) as address,
        serving(
            place, *place.profile, "--insecure", "--ray", address, "--rest", "127.0.0.1:0", "--batches", "1,4"
        ) as server,
    ):
        stub = GRPCInferenceServiceStub(grpc.insecure_channel(server.target))
        first = logits(stub.ModelInfer(asked))
        (old,) = replicas_below(address)
        waiting = [stub.ModelInfer.future(asked) for _ in range(20)]
        os.kill(old.pid, signal.SIGKILL)
        waiting += [stub.ModelInfer.future(asked) for _ in range(20)]
        answered = 0
        for one in waiting:
            error = one.exception(60)
            if error is None:
                np.testing.assert_allclose(logits(one.result()), first, rtol=1e-5, atol=1e-5)
                answered += 1
            else:
                assert error.code() in REFUSED, error.details()
                assert "replica" in error.details()
        end = time.monotonic() + 120
        while True:  # another one starts by itself
            asking = stub.ModelInfer.future(asked)
            error = asking.exception(60)
            if error is None:
                break
            assert error.code() in REFUSED, error.details()
            assert time.monotonic() < end
            time.sleep(0.3)
        np.testing.assert_allclose(logits(asking.result()), first, rtol=1e-5, atol=1e-5)
        assert httpx.get(f"http://127.0.0.1:{server.rest_port}/v2/health/ready").json() == {"ready": True}
        (new,) = replicas_below(address)
        assert new.pid != old.pid
        assert server.end() == 0
        assert not new.is_running() or new.status() == "zombie"  # the front took away what it had started
