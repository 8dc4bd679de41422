"""Clients that were not made for us, unmodified, against ``fedstill serve`` as a process: tritonclient and curl."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from helpers.command import CliRunner
from helpers.guarded import Guarded, guarded_server, values
from helpers.serve_process import SIZE, Place, Serve, make_place, serving
from helpers.serving import png

from fedstill.cli import main as cli
from fedstill.client.serving_client import ServingAddress, ServingClient
from fedstill.protos import open_inference_pb2 as pb
from fedstill.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub

pytestmark = pytest.mark.slow

HELPERS = Path(__file__).parents[1] / "helpers"
OPTIONS = ("--rest", "127.0.0.1:0", "--policy", "pets")  # the plain model: all ways through the same schedule
WAYS = 19
needs_triton = pytest.mark.skipif(
    find_spec("geventhttpclient") is None, reason="tritonclient[grpc,http] is not installed"
)
needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    with guarded_server(tmp_path_factory.mktemp("guarded"), *OPTIONS) as found:
        yield found


@needs_triton
def test_tritonclient_gets_the_same_logits_in_every_way(guarded: Guarded) -> None:
    command = [sys.executable, str(HELPERS / "triton_ways.py"), guarded.server.target, guarded.rest, "cats"]
    command += [str(SIZE), str(guarded.ca_file), guarded.token]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    expected = guarded.logits(values())
    assert len(found["ways"]) == WAYS
    for way, logits in found["ways"].items():
        np.testing.assert_allclose(logits, expected, atol=1e-4, err_msg=way)
    for face, codes in (("grpc", "StatusCode.UNIMPLEMENTED"), ("http", "501")):
        said = found[face]
        assert (said["live"], said["ready"], said["unknown"]) == (True, True, False), face
        assert (said["server"], said["inputs"], said["largest"]) == ("fedstill", ["pixels"], 64), face
        assert said["counted"], face
        assert said["index"] == [["cats", "READY"], ["dogs", "READY"]], face
        assert len(said["refused"]) == 3
        assert all(text.startswith(f"[{codes}]") and "there " in text for text in said["refused"]), said[
            "refused"
        ]
        best = [[str(place) for place in np.argsort(-row)[:2]] for row in expected]
        assert said["classification"] == [[[place, f"class{place}"] for place in row] for row in best], face
    assert found["changed"] == [[False, True], [False, True]]


def curl(guarded: Guarded, path: str, *options: str) -> tuple[int, Any]:
    """Status and JSON."""
    command = ["curl", "--silent", "--cacert", str(guarded.ca_file), "--max-time", "60"]
    command += ["--write-out", "\n%{http_code}", *options, f"https://{guarded.rest}{path}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    text, _, status = done.stdout.rpartition("\n")
    return int(status), json.loads(text) if text else None


@needs_curl
def test_curl_sends_a_file_as_it_is_and_json(guarded: Guarded, tmp_path: Path) -> None:
    token = ("--header", f"Authorization: Bearer {guarded.token}")
    assert curl(guarded, "/v2/health/ready") == (200, {"ready": True})
    assert curl(guarded, "/v2/health/ready", "--head", "--output", "/dev/null") == (200, None)
    assert curl(guarded, "/v2/models/cats")[0] == 401
    assert curl(guarded, "/v2/models/cats", *token)[1]["versions"] == ["1"]
    picture = tmp_path / "rex.png"
    picture.write_bytes(png())
    raw = ("--header", "Inference-Header-Content-Length: 0", "--data-binary", f"@{picture}")
    status, alone = curl(guarded, "/v2/models/cats/infer", *token, *raw)
    assert status == 200, alone
    request = tmp_path / "request.json"
    tensor = {
        "name": "encoded",
        "shape": [1],
        "datatype": "BYTES",
        "data": [base64.b64encode(png()).decode()],
    }
    request.write_text(json.dumps({"inputs": [tensor]}))
    packed = tmp_path / "request.json.gz"
    packed.write_bytes(subprocess.run(["gzip", "-c", str(request)], capture_output=True, check=True).stdout)
    for data in (
        ("--data-binary", f"@{request}"),
        ("--data-binary", f"@{packed}", "--header", "Content-Encoding: gzip"),
    ):
        status, answer = curl(guarded, "/v2/models/cats/infer", *token, *data)
        assert status == 200, answer
        assert answer["outputs"] == alone["outputs"]
    credentials = ServingAddress(guarded.server.target, guarded.ca_file.read_bytes(), guarded.token)
    with ServingClient(credentials) as client:
        ours = client.make_query("cats", png())
    np.testing.assert_allclose(alone["outputs"][0]["data"], ours.logits, atol=1e-4)
    assert alone["outputs"][1]["data"] == [ours.label]


CLASSES = {1: 3, 2: 4, 3: 5}
"""Of the versions of `cats`: the number of logits tells which one has answered."""


class Crowd:
    """Queries of our own stub and of httpx in threads; what each got is written down once."""

    def __init__(self, server: Serve, each: int) -> None:
        self.found: list[list[Any]] = []
        self._server, self._each, self._lock = server, each, threading.Lock()
        self._threads = [threading.Thread(target=ask) for ask in (self._grpc, self._json, self._file)]

    def __enter__(self) -> Crowd:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for thread in self._threads:
            thread.join(120)
            assert not thread.is_alive(), "a query without an answer"

    def _note(self, *found: Any) -> None:
        with self._lock:
            self.found.append(list(found))

    def _grpc(self) -> None:
        with grpc.insecure_channel(self._server.target) as channel:
            stub = GRPCInferenceServiceStub(channel)
            for number in range(self._each):
                file = png(number)
                raw = len(file).to_bytes(4, "little") + file
                request = pb.ModelInferRequest(model_name="cats", raw_input_contents=[raw])
                request.inputs.add(name="encoded", datatype="BYTES", shape=[1])
                call = stub.ModelInfer.future(request, timeout=60)
                if call.code() is grpc.StatusCode.OK:
                    self._note(int(call.result().model_version), call.result().outputs[0].shape[1])
                else:
                    self._note(f"{call.code().name} {call.details()}")

    def _json(self) -> None:
        tensor = {"name": "pixels", "shape": [1, 8, 8, 3], "datatype": "UINT8"}
        self._post(lambda number: {"json": {"inputs": [tensor | {"data": [number] * 192}]}})

    def _file(self) -> None:
        header = {"Inference-Header-Content-Length": "0"}
        self._post(lambda number: {"content": png(number), "headers": header})

    def _post(self, sent: Any) -> None:
        with httpx.Client(base_url=f"http://127.0.0.1:{self._server.rest_port}", timeout=60) as web:
            for number in range(self._each):
                answer = web.post("/v2/models/cats/infer", **sent(number))
                said = answer.json()
                if answer.status_code == 200:
                    self._note(int(said["model_version"]), said["outputs"][0]["shape"][1])
                else:
                    self._note(f"{answer.status_code} {said['error']}")


@needs_triton
def test_versions_in_answers_are_true_while_tasks_come_and_go(tmp_path: Path) -> None:
    """200 queries of four clients, while `cats` gets versions, is rolled back, removed and brought back."""
    place = make_place(tmp_path)
    with serving(place, "--insecure", *OPTIONS, *place.profile) as server:
        command = [sys.executable, str(HELPERS / "triton_crowd.py"), server.target]
        command += [f"127.0.0.1:{server.rest_port}", "cats", "50", str(SIZE)]
        triton = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        with Crowd(server, 50) as crowd:
            change_tasks(place, server)
        printed, failed = triton.communicate(timeout=120)
        assert triton.returncode == 0, failed
        found = crowd.found + json.loads(printed)
        assert len(found) == 200
        refused = [one[0] for one in found if len(one) == 1]
        assert all("'cats' is not served" in text for text in refused), refused
        answered = [one for one in found if len(one) == 2]
        assert {tuple(one) for one in answered} <= set(CLASSES.items())
        assert server.end() == 0


def change_tasks(place: Place, server: Serve) -> None:
    """From the command line, as an operator would; the server sees each change within a second."""

    def run(*arguments: str) -> None:
        done = CliRunner().invoke(cli.app, ["tasks", *arguments, "--registry", str(place.state)])
        assert done.exit_code == 0, done.output

    def wait_for(version: str) -> None:
        web = f"http://127.0.0.1:{server.rest_port}/v2/models/cats/versions/{version}/ready"
        end = time.monotonic() + 30
        while httpx.get(web, timeout=30).status_code != 200:
            assert time.monotonic() < end, version
            time.sleep(0.02)

    for version in (2, 3):
        place.register("cats", CLASSES[version], seed=version)
        wait_for(str(version))
    run("activate", "cats", "1")
    wait_for("1")
    run("remove", "cats")
    time.sleep(1.2)
    run("activate", "cats", "2")
    wait_for("2")
