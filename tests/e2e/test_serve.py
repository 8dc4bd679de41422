"""``fedstill serve`` as a process: TLS and tokens, an unmodified tritonclient, bursts, swaps, and a clean end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import grpc
import httpx
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from helpers.command import CliRunner
from helpers.serve_process import (
    SERVE,
    SIZE,
    START_SECONDS,
    Place,
    Serve,
    announced,
    draw_pictures,
    make_place,
    serving,
)
from helpers.serving import png

from fedstill.cli import main as cli
from fedstill.client.serving_client import ServingAddress, ServingClient, ServingError
from fedstill.cloud_server.auth.authority import create_authority, issue_node
from fedstill.cloud_server.serving.engine.environment import serving_environment
from fedstill.cloud_server.serving.scheduling.profile import read_profile
from fedstill.common.folder_lock import sole_user
from fedstill.protos import open_inference_pb2 as open_pb
from fedstill.protos import serving_pb2 as pb
from fedstill.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from fedstill.protos.serving_pb2_grpc import ServingStub

pytestmark = pytest.mark.slow

needs_openvino = pytest.mark.skipif(
    find_spec("openvino") is None, reason="OpenVINO is not installed: pip install '.[openvino]'"
)
HELPERS = Path(__file__).parents[1] / "helpers"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return make_place(tmp_path)


def variant(log: str) -> str:
    """Of the engine that got ready."""
    return log.partition("engine ready variant=")[2].partition(" device=")[0]


def test_a_tritonclient_session_over_tls_with_a_token(place: Place) -> None:
    draw_pictures(place.folder / "cats", ("class0", "class1", "class2"))
    authority = create_authority(place.folder / "authority")
    issue_node(place.folder / "authority", "kitchen")
    issue_node(place.folder / "authority", "boss")
    other = create_authority(place.folder / "other")
    issue_node(place.folder / "other", "stranger")

    def address(server: Serve, folder: str, name: str, ca: Path = authority.ca_file) -> ServingAddress:
        token = (place.folder / folder / "nodes" / name / "token").read_text()
        return ServingAddress(server.target, ca.read_bytes(), token)

    options = ["--authority", str(authority.directory), "--operator", "boss", "--batches", "1,4"]
    options += ["--images", f"cats={place.folder / 'cats'}", "--val-images", "6", "--schedules=0,-20"]
    options += ["--backend", "auto"]
    with serving(place, *options, launched=False) as server:
        session = [sys.executable, str(HELPERS / "triton_session.py"), server.target, "cats", str(SIZE)]
        token = (authority.directory / "nodes" / "kitchen" / "token").read_text()
        done = subprocess.run(
            [*session, str(authority.ca_file), token],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout)
        assert said["live"]
        assert said["ready"]
        assert said["server"] == "fedstill"
        assert said["shapes"] == [[2, 3], [1, 3], [1, 3]]
        assert {label for labels in said["labels"] for label in labels} <= {"class0", "class1", "class2"}
        assert said["identifier"] == "42"
        assert {"schedule", "waiting_ms", "inference_ms", "batch_size"} <= set(said["parameters"])
        assert said["only"] == [True, 1]
        codes = {name: status for name, (status, _) in said["refusals"].items()}
        assert codes == {
            "unknown": "StatusCode.NOT_FOUND",
            "late": "StatusCode.DEADLINE_EXCEEDED",
            "bad": "StatusCode.INVALID_ARGUMENT",
        }

        with ServingClient(address(server, "authority", "kitchen")) as client:
            assert client.make_query("dogs", png(), latency_ms=20_000).label in ("class0", "class1")
            with pytest.raises(ServingError) as caught:
                client.delete_task("dogs")
            assert caught.value.code is grpc.StatusCode.PERMISSION_DENIED
        with ServingClient(address(server, "other", "stranger")) as client:
            with pytest.raises(ServingError) as caught:
                client.make_query("cats", png())
            assert caught.value.code is grpc.StatusCode.UNAUTHENTICATED
        with ServingClient(address(server, "authority", "kitchen", other.ca_file)) as client:
            with pytest.raises(ServingError) as caught:
                client.describe()
            assert caught.value.code is grpc.StatusCode.UNAVAILABLE
        with ServingClient(address(server, "authority", "boss")) as client:
            client.delete_task("dogs")
            assert [one.name for one in client.describe().tasks] == ["cats"]
        assert server.end() == 0
        log = server.log.read_text()
        assert "event=profile_measured" in log
        assert token not in log
        assert "engine variants" in log  # one was chosen by a trial
    place.register("dogs", 2, seed=1)
    server.log.unlink()
    with serving(place, *options) as server:
        again = server.log.read_text()
        assert "event=profile_found" in again
        assert "engine variants" not in again
        assert variant(again) == variant(log)
        assert server.end() == 0


def test_a_server_listens_at_once_and_says_what_it_does_until_it_is_ready_or_stopped(place: Place) -> None:
    draw_pictures(place.folder / "cats", ("class0", "class1", "class2"))
    options = ["--insecure", "--web", "127.0.0.1:0", "--images", f"cats={place.folder / 'cats'}"]
    options += ["--batches", "1,2,4,8,16,32,64,128"]  # minutes of timing
    with serving(place, *options, measured=False) as server:
        web = f"http://127.0.0.1:{announced(place.state / 'serve' / 'server.json')['web_port']}"
        with grpc.insecure_channel(server.target) as channel:
            inference = GRPCInferenceServiceStub(channel)
            asked = open_pb.ModelReadyRequest(name="elastic_vit")
            assert inference.ServerLive(open_pb.ServerLiveRequest(), timeout=30).live
            assert not inference.ServerReady(open_pb.ServerReadyRequest(), timeout=30).ready
            assert not inference.ModelReady(asked, timeout=30).ready
            health = health_pb2_grpc.HealthStub(channel)
            for service in ("", "inference.GRPCInferenceService", "fedstill.serving.v1.Serving"):
                status = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=30).status
                assert status == health_pb2.HealthCheckResponse.NOT_SERVING
        wait_for(server.log, "timing")
        with ServingClient(server.address) as client, pytest.raises(ServingError) as caught:
            client.make_query("cats", png())
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE
        assert caught.value.retry_after_ms > 0
        assert str(caught.value).startswith("the server is starting: timing")
        assert httpx.get(f"{web}/").status_code == 200
        healthy = httpx.get(f"{web}/healthz")
        assert (healthy.status_code, healthy.text.split(" ")[0]) == (503, "starting:")
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(30) == 0  # seconds, where the measurement takes minutes
        said = server.log.read_text()
    assert "event=serving" not in said
    assert "Traceback" not in said
    assert not (place.state / "serve" / "server.json").exists()


def wait_for(log: Path, word: str) -> None:
    end = time.monotonic() + START_SECONDS
    while word not in log.read_text():
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.05)


class Load:
    """Clients in a few threads that ask again at once, or soon if refused, until told to stop; answers by code."""

    def __init__(self, server: Serve, tasks: tuple[str, ...] = ("cats", "dogs"), clients: int = 4) -> None:
        self.clients, self.codes = clients, Counter[str]()
        self.labels: set[str] = set()
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(server.address, tasks[number % len(tasks)]))
            for number in range(clients)
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a request without an answer"

    def wait_for(self, code: str, more: int) -> None:
        end, wanted = time.monotonic() + 60, self.codes[code] + more
        while self.codes[code] < wanted:
            assert time.monotonic() < end, self.codes
            time.sleep(0.01)

    def _ask(self, address: ServingAddress, name: str) -> None:
        with ServingClient(address) as client:
            while not self._stop.is_set():
                code = "OK"
                try:
                    answer = client.make_query(name, png(side=24), latency_ms=20_000)
                except ServingError as error:
                    code = error.code.name
                    time.sleep(0.02)
                with self._lock:
                    self.codes[code] += 1
                    self.labels |= {answer.label} if code == "OK" else set()


def test_sigterm_under_load_answers_who_is_in(place: Place) -> None:
    with serving(place, "--insecure", *place.profile) as server, Load(server) as load:
        load.wait_for("OK", 20)
        assert server.end() == 0
        load.wait_for("UNAVAILABLE", 4)
    # In the instant when the port closes, gRPC itself cancels what it has read and not handed over to us yet.
    assert set(load.codes) <= {"OK", "UNAVAILABLE", "CANCELLED"}
    assert load.codes["CANCELLED"] <= load.clients
    assert "everyone_answered=True" in server.log.read_text()
    assert not (place.state / "serve" / "server.json").exists()


@pytest.mark.parametrize("backend", ["torch", pytest.param("openvino", marks=needs_openvino)])
def test_hot_swaps_and_a_deletion_under_load(place: Place, backend: str) -> None:
    options = ["--insecure", *place.profile, "--backend", backend]
    with serving(place, *options) as server, Load(server) as load:
        load.wait_for("OK", 10)
        for seed in range(3):
            place.register("cats", 50, seed)  # from outside: the server watches the registry
            load.wait_for("OK", 10)
        with ServingClient(server.address) as client:
            end = time.monotonic() + 30
            while not load.labels - {"class0", "class1", "class2"}:
                assert time.monotonic() < end, load.labels
                time.sleep(0.05)
            assert set(load.codes) == {"OK"}
            client.delete_task("dogs")
            load.wait_for("NOT_FOUND", 4)
            load.wait_for("OK", 10)
            assert set(load.codes) == {"OK", "NOT_FOUND"}
        assert server.process.poll() is None


def test_a_burst_with_vanishing_clients_leaves_a_healthy_server(place: Place) -> None:
    image = png(side=24)
    answered: Counter[str] = Counter()
    options = ["--insecure", *place.profile, "--waiting", "200"]
    with serving(place, *options, launched=False) as server:
        process = psutil.Process(server.process.pid)
        with ServingClient(server.address) as client:
            client.make_query("cats", image)
        sizes = [process.memory_info().rss]
        for _ in (
            "ab"
        ):  # in the first one batches have sizes that the engine has not met, which oneDNN compiles and keeps
            answered += burst_with_vanishing_clients(server.target, image)
            sizes.append(process.memory_info().rss)
        assert set(answered) <= {"OK", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "CANCELLED"}, answered
        assert answered["OK"] > 0
        with ServingClient(server.address) as client:
            assert client.make_query("cats", image, latency_ms=20_000).label
        assert sizes[1] - sizes[0] < 700e6
        assert sizes[2] - sizes[1] < 150e6, "clients that vanished have left something"
        assert server.end() == 0


def burst_with_vanishing_clients(target: str, image: bytes) -> Counter[str]:
    """Many times what a server can do; of two clients one dies with all that it has asked. The codes of the other's."""
    channels = [grpc.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)]) for _ in "ab"]
    calls = []
    end = time.monotonic() + 3
    while time.monotonic() < end:  # whether it answers or not
        for channel in channels:
            asked = pb.MakeQueryRequest(task="dogs", image=image, latency_ms=300, utility=1)
            calls.append(ServingStub(channel).MakeQuery.future(asked, timeout=60))
        if len(calls) % 7 == 0:
            calls.pop().cancel()
        time.sleep(0.0005)
    vanished = set(calls[1::2])
    channels[1].close()
    answered = Counter(call.code().name for call in calls if call not in vanished)
    channels[0].close()
    return answered


def test_warmed_models_are_served_by_the_reduction_that_the_policy_chooses(place: Place) -> None:
    draw_pictures(place.folder / "pets", ("cats", "dogs"))
    warmed, weights = place.folder / "warm", str(place.folder / "test_vit.safetensors")
    sizes = ["--reductions", "0,10,40", "--middle", "10", "--measured", "0,40", "--epochs", "1"]
    command = ["warmup", "--task", str(place.folder / "pets"), "--weights", weights, "--out", str(warmed)]
    done = CliRunner().invoke(cli.app, [*command, *sizes, "--budget", "models=2", "--yes"])
    assert done.exit_code == 0, done.output
    names = {schedule.name for schedule in read_profile(warmed / "profile.json").schedules}
    options = ["--warmed", str(warmed), "--insecure", "--batches", "1,4"]
    with serving(place, *options, folder=warmed) as server, ServingClient(server.address) as client:
        (task,) = client.describe().tasks
        assert (task.name, task.class_names) == ("pets", ("cats", "dogs"))
        answer = client.make_query("pets", png(), latency_ms=20_000)
        assert answer.label in task.class_names
        assert answer.schedule in names
        with pytest.raises(ServingError, match="stay as they are"):
            client.delete_task("pets")
        with pytest.raises(ServingError, match=r"not served|unknown"):
            client.make_query("cats", png())
        assert server.end() == 0
    kept = next((warmed / "models").iterdir())
    kept.write_bytes(kept.read_bytes()[:-1])
    server.log.unlink()
    with serving(place, *options, folder=warmed) as server, ServingClient(server.address) as client:
        assert "event=warmed_model_refused" in server.log.read_text()
        assert client.make_query("pets", png(), latency_ms=20_000).label in task.class_names


def refused(place: Place, *options: str) -> tuple[int, str]:
    """Exit code and last line of a server that does not start."""
    done = subprocess.run(
        [*SERVE, *place.options, "--insecure", *place.profile, *options],
        capture_output=True, text=True, timeout=120, check=False, env=serving_environment(os.environ),
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr.strip().splitlines()[-1]


def test_what_another_process_holds_is_one_line(place: Place) -> None:
    with sole_user(place.state / "serve"):
        code, said = refused(place)
    assert code == 2
    assert "another fedstill process uses it" in said
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, said = refused(place, "--listen", f"127.0.0.1:{taken.getsockname()[1]}")
    assert code == 1
    assert "cannot listen here" in said


def test_a_policy_that_the_profile_has_no_schedule_for_is_one_line(place: Place) -> None:
    code, said = refused(place, "--policy", "vpt8")
    assert code == 2
    assert "no schedule with token delta 8" in said


@pytest.fixture
def own_signals() -> Iterator[None]:
    """The command takes signals over, and this process is not its own."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "--authority: needs a folder"),
        (["--insecure", "--authority", "x"], "--insecure and --authority: one of them"),
        (["--insecure", "--drain-seconds", "inf"], "--drain-seconds inf: needs seconds from 0 to 86400"),
        (["--insecure", "--lame-duck", "nan"], "--lame-duck nan: needs seconds from 0 to 86400"),
        (["--authority", "a", "--tls-key", "k.pem"], "give both"),
        (["--insecure", "--client-ca", "ca.pem"], "there is no TLS then"),
        (["--insecure", "--rate-limit", "shop=1"], "--insecure knows no tokens"),
        (["--authority", "a", "--rate-limit", "shop"], "needs a number of queries per second"),
        (["--insecure", "--operator", "boss"], "--operator"),
        (["--insecure", "--policy", "fastest"], "unknown policy 'fastest'"),
        (["--insecure", "--policy", "infaas"], "a server has one trunk"),
        (["--insecure", "--listen", "8001"], "is no HOST:PORT"),
        (["--insecure", "--precision", "fp8"], "--precision"),
        (["--insecure", "--device", "tpu"], "--device"),
        (["--insecure", "--batches", "two"], "--batches"),
        (["--insecure", "--images", "cats"], "write NAME=PATH"),
        (["--insecure", "--profile", "p.json", "--schedules", "0"], "--schedules"),
        (["--insecure", "--state", "nowhere"], "no task registry here"),
        (["--insecure", "--warmed", "nowhere"], "make one with: fedstill warmup"),
        (["--insecure", "--warmed", "nowhere", "--images", "cats=x"], "its folder defines what is served"),
    ],
)
def test_each_mistake_is_one_line_with_exit_code_2(
    place: Place, options: list[str], said: str, own_signals: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedstill.cli.shared.console.errors.width", 300)
    done = CliRunner().invoke(cli.app, ["serve", *place.options, *options])
    assert done.exit_code == 2, done.output
    assert said in done.output
    assert len(done.output.strip().splitlines()) == 1
