"""Guards the fleet with real processes: the proxy lets nodes in, but no unregistered nodes or operators' commands."""

from __future__ import annotations

import base64
import json
import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import httpx
import psutil
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from helpers.flower_app import write_probe
from helpers.proxy import Proxy, end_families, free_port, proxy
from helpers.quick import quick_environment

from fedstill.cloud_server.auth.authority import (
    create_authority,
    issue_node,
    read_authority,
    revoke_node,
)
from fedstill.cloud_server.auth.register import list_nodes
from fedstill.cloud_server.coordinator.fleet_proxy import ProxySettings
from fedstill.cloud_server.coordinator.proxy_process import ProxyProcess
from fedstill.cloud_server.coordinator.superlink import SuperLink
from fedstill.cloud_server.grpc.server_tls import ServerTls
from fedstill.cloud_server.journal.traffic import read_traffic
from fedstill.common.credentials import read_node_bundle, read_node_key
from fedstill.common.flower_cli import FlowerError, environment, tool

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SECONDS = 150.0
PROTOBUF = {"content-type": "application/protobuf", "accept": "application/protobuf"}
MEBIBYTES = 12


@dataclass
class Fleet:
    """A SuperLink with TLS and node authentication on loopback, and the proxy in front of it."""

    folder: Path
    link: SuperLink
    endpoint: Proxy
    nodes: list[psutil.Process] = field(default_factory=list)

    @property
    def certs(self) -> Path:
        return self.folder / "certs"

    def node(
        self, bundle: Path, *, ca: Path | None = None, name: str = ""
    ) -> tuple[subprocess.Popen[bytes], Path]:
        """A SuperNode with these credentials, and its log."""
        home = self.folder / "homes" / (name or bundle.name)
        home.mkdir(parents=True, exist_ok=True)
        log = home / "supernode.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                [tool("flower-supernode"), "--superlink", f"127.0.0.1:{self.endpoint.port}",
                 "--root-certificates", str(ca or bundle / "ca.crt"),
                 "--auth-supernode-private-key", str(bundle / "node"), "--port", str(free_port()),
                 "--node-config", f'name="{bundle.name}"'],
                cwd=home, env=environment(home), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip
        self.nodes.append(psutil.Process(process.pid))
        return process, log

    def operator(self) -> dict[str, str]:
        """What someone on a device would set up to call ``flwr``: our authority, the proxy's port."""
        home = self.folder / "homes" / "operator"
        home.mkdir(parents=True, exist_ok=True)
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "endpoint"\n[superlink.endpoint]\naddress = "127.0.0.1:{self.endpoint.port}"\n'
            f'root-certificates = "{self.certs / "ca.crt"}"\n'
        )
        return environment(home)

    def status_of(self, name: str) -> str:
        return next((node.status for node in self.link.nodes() if node.name == name), "unknown")


def wait_until(reached: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not reached():
        assert time.monotonic() < deadline, f"not within {SECONDS:.0f} s: {what}"
        time.sleep(0.3)


@contextmanager
def running_fleet(folder: Path, *names: str) -> Iterator[Fleet]:
    authority = create_authority(folder / "certs")
    for name in names:
        issue_node(folder / "certs", name)
    tls = authority.tls
    link = SuperLink(folder / "state", tls)
    nodes: list[psutil.Process] = []
    link.start()
    try:
        link.wait_until_healthy()
        link.synchronise(list_nodes(folder / "certs"))
        given = ProxySettings(
            "127.0.0.1", 0, link.url, ca_file=str(authority.ca_file),
            certificate_file=str(authority.certificate_file), key_file=str(authority.key_file),
            traffic_file=str(folder / "traffic.json"),
        )  # fmt: skip
        with proxy(folder / "proxy", given) as endpoint:
            fleet = Fleet(folder, link, endpoint, nodes)
            yield fleet
            end_families(nodes)
    finally:
        end_families(nodes)
        link.stop()


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Children of this process wait less."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        for name, value in quick_environment().items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """With the registered nodes kitchen (running) and hall."""
    with running_fleet(tmp_path_factory.mktemp("fleet"), "kitchen", "hall") as running:
        running.node(running.certs / "nodes" / "kitchen")
        wait_until(lambda: running.status_of("kitchen") == "online", "kitchen is online")
        yield running


def test_a_run_goes_through_the_endpoint_both_ways(fleet: Fleet) -> None:
    app = write_probe(fleet.folder)
    out = fleet.folder / "answers.json"
    run_id = fleet.link.submit(app, {"out": str(out), "mebibytes": MEBIBYTES})
    wait_until(lambda: fleet.link.status(run_id).finished, "the run is finished")
    assert fleet.link.status(run_id).status == "finished:completed", fleet.link.log_file.read_text()[-2000:]
    assert json.loads(out.read_text()) == [{"bytes": MEBIBYTES * 2**20, "name": "kitchen"}]

    key = read_node_bundle(fleet.certs / "nodes" / "kitchen").identity.fingerprint

    def down() -> int:
        traffic = read_traffic(fleet.folder / "traffic.json")
        assert {entry.peer for entry in traffic} <= {key}
        return sum(entry.bytes_down for entry in traffic if entry.route == "pull-object")

    wait_until(lambda: down() > 0, "the traffic is written")
    assert MEBIBYTES * 2**20 <= down() < (MEBIBYTES + 1) * 2**20


def test_an_unregistered_key_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    create_authority(tmp_path / "other")
    issue_node(tmp_path / "other", "stranger")
    process, log = fleet.node(tmp_path / "other" / "nodes" / "stranger", ca=fleet.certs / "ca.crt")
    assert process.wait(SECONDS) == 1
    assert "305" in log.read_text()


def test_a_node_refuses_a_server_of_another_authority(fleet: Fleet, tmp_path: Path) -> None:
    """A node whose authority did not sign the server's certificate does not talk to it."""
    create_authority(tmp_path / "other")
    hall = fleet.certs / "nodes" / "hall"
    process, log = fleet.node(hall, ca=tmp_path / "other" / "ca.crt", name="misled")
    assert process.wait(SECONDS) == 1
    assert "CERTIFICATE_VERIFY_FAILED" in log.read_text()
    assert fleet.status_of("hall") == "registered"


@pytest.mark.parametrize(
    "command",
    [
        ["run", "{app}", "endpoint"],
        ["stop", "{run}", "endpoint"],
        ["list", "endpoint"],
        ["log", "{run}", "endpoint", "--show"],
        ["supernode", "register", "{key}", "endpoint"],
        ["supernode", "list", "endpoint"],
    ],
    ids=lambda command: "-".join(command[:2]),
)
def test_operators_commands_fail_at_the_endpoint(fleet: Fleet, tmp_path: Path, command: list[str]) -> None:
    before = len(fleet.link.nodes())
    create_authority(tmp_path / "other")
    issue_node(tmp_path / "other", "stranger")
    fill = {
        "app": str(write_probe(tmp_path)), "run": "1", "key": str(tmp_path / "other/nodes/stranger/node.pub")
    }  # fmt: skip
    done = subprocess.run(
        [tool("flwr"), *(part.format(**fill) for part in command)],
        env=fleet.operator(), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "404" in done.stdout + done.stderr
    assert len(fleet.link.nodes()) == before


def test_no_control_and_no_runtime_route_answers_a_device(fleet: Fleet) -> None:
    """Every route of the installed Flower, asked as a device that holds our authority could."""
    from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES

    trust = ssl.create_default_context(cafile=str(fleet.certs / "ca.crt"))
    with (
        httpx.Client(
            base_url=f"https://127.0.0.1:{fleet.endpoint.port}", verify=trust, trust_env=False
        ) as endpoint,
        httpx.Client(base_url=fleet.link.url, verify=trust, trust_env=False) as inside,
    ):
        published = set(inside.get("/openapi.json").json()["paths"])
        closed = {path for path in published if not path.startswith("/v1/fleet/")}
        closed |= {path for _, path in PROTOBUF_REQUEST_TYPES if not path.startswith("/v1/fleet/")}
        closed |= {"/docs", "/openapi.json", "/health"}
        assert len([path for path in closed if path.startswith("/v1/control/")]) > 30
        assert len([path for path in closed if path.startswith("/v1/runtime/")]) > 10
        for path in sorted(closed):
            for spelled in (
                path,
                path.upper(),
                f"/v1/fleet/..{path}",
                f"/v1/fleet/%2e%2e/..{path}",
                f"/{path}",
            ):
                for method in ("POST", "GET"):
                    assert (
                        endpoint.request(method, spelled, content=b"", headers=PROTOBUF).status_code == 404
                    ), spelled
        assert inside.post("/v1/control/list-runs", content=b"", headers=PROTOBUF).status_code == 200


def test_a_forged_signature_does_not_pass(fleet: Fleet, tmp_path: Path) -> None:
    """A device that knows another's public key, but not the private one."""
    create_authority(tmp_path / "other")
    issue_node(tmp_path / "other", "forger")
    claimed = read_node_key(fleet.certs / "nodes" / "kitchen" / "node").public_key()
    pem = claimed.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    stamp = datetime.now(UTC).isoformat()
    trust = ssl.create_default_context(cafile=str(fleet.certs / "ca.crt"))
    answers = {}
    for signer in (fleet.certs / "nodes" / "kitchen", tmp_path / "other" / "nodes" / "forger"):
        signature = read_node_key(signer / "node").sign(stamp.encode(), ec.ECDSA(hashes.SHA256()))
        signed = {
            **PROTOBUF, "flwr-timestamp": stamp,
            "flwr-public-key": base64.b64encode(pem).decode(), "flwr-signature": base64.b64encode(signature).decode(),
        }  # fmt: skip
        with httpx.Client(
            base_url=f"https://127.0.0.1:{fleet.endpoint.port}", verify=trust, trust_env=False
        ) as endpoint:
            body = ActivateNodeRequest(public_key=pem, heartbeat_interval=30).SerializeToString()
            answers[signer.name] = endpoint.post(
                "/v1/fleet/activate-node", content=body, headers=signed
            ).status_code
            assert endpoint.post("/v1/fleet/activate-node", content=body, headers=PROTOBUF).status_code == 401
    assert answers["forger"] == 401
    assert answers["kitchen"] != 401  # what is wrong with the forged one is its signature alone


def test_killed_superlink_comes_back_and_its_node_too(fleet: Fleet) -> None:
    assert fleet.link.pid is not None
    before = {node.name: node.node_id for node in fleet.link.nodes()}
    psutil.Process(fleet.link.pid).kill()
    wait_until(lambda: fleet.link.poll() is not None, "the kill is noticed")
    assert not fleet.link.healthy()
    trust = ssl.create_default_context(cafile=str(fleet.certs / "ca.crt"))
    url = f"https://127.0.0.1:{fleet.endpoint.port}/v1/fleet/get-run"
    assert httpx.post(url, verify=trust, headers=PROTOBUF, trust_env=False).status_code == 503
    with pytest.raises(FlowerError, match="does not answer"):
        fleet.link.nodes()

    fleet.link.restart()
    fleet.link.wait_until_healthy()
    wait_until(lambda: fleet.status_of("kitchen") == "online", "kitchen is back")
    assert fleet.link.synchronise(list_nodes(fleet.certs)) == before
    out = fleet.folder / "again.json"

    def kitchen_answers() -> bool:
        """A node counts as online for 60 s after its last heartbeat, also one from before the kill."""
        run_id = fleet.link.submit(fleet.folder / "probe", {"out": str(out)})
        wait_until(lambda: fleet.link.status(run_id).finished, "a run after the restart is finished")
        return bool(json.loads(out.read_text()) == [{"bytes": 0, "name": "kitchen"}])

    wait_until(kitchen_answers, "kitchen answers")


def test_runs_that_were_left_are_stopped_and_wrong_questions_are_one_line(fleet: Fleet) -> None:
    """A run that waits when the SuperLink is killed would begin with the next one, beside the new run."""
    never = {"nodes": 9, "out": str(fleet.folder / "never.json")}
    first = fleet.link.submit(fleet.folder / "probe", never)
    wait_until(lambda: fleet.link.status(first).status == "running", "it runs")
    second = fleet.link.submit(fleet.folder / "probe", never)
    assert fleet.link.pid is not None
    psutil.Process(fleet.link.pid).kill()
    wait_until(lambda: fleet.link.poll() is not None, "the kill is noticed")
    fleet.link.restart()
    fleet.link.wait_until_healthy()
    assert second in fleet.link.stop_unfinished()  # Flower may have missed the first one's heartbeat already
    assert fleet.link.stop_unfinished() == ()
    assert fleet.link.status(first).finished
    assert fleet.link.status(second).status == "finished:stopped"
    for ask in (
        lambda: fleet.link.status(1),
        lambda: fleet.link.submit(fleet.folder / "probe", {"unheard": 1}),
        lambda: fleet.link.submit(fleet.folder / "nothing"),
    ):
        with pytest.raises(FlowerError) as refused:
            ask()
        assert "\n" not in str(refused.value)


def test_a_revoked_node_is_thrown_out_for_ever(fleet: Fleet) -> None:
    """The last test of the module: kitchen does not come back."""
    issue_node(fleet.certs, "attic")
    assert "attic" in fleet.link.synchronise(list_nodes(fleet.certs))
    revoke_node(fleet.certs, "kitchen")
    assert set(fleet.link.synchronise(list_nodes(fleet.certs))) == {"hall", "attic"}
    kitchen = fleet.nodes[0]
    wait_until(lambda: not kitchen.is_running() or kitchen.status() == psutil.STATUS_ZOMBIE, "kitchen ends")
    process, log = fleet.node(fleet.certs / "nodes" / "kitchen", name="kitchen-again")
    assert process.wait(SECONDS) == 1
    assert "305" in log.read_text()
    assert "kitchen" in read_authority(fleet.certs).revoked_names


def test_nobody_waits_for_a_superlink_that_hangs_once_the_end_is_asked_for(tmp_path: Path) -> None:
    link, stop = SuperLink(tmp_path, None), threading.Event()
    link.start()
    try:
        assert link.pid is not None
        psutil.Process(link.pid).suspend()
        asked = threading.Timer(1.0, stop.set)
        asked.start()
        assert not link.wait_until_healthy(SECONDS, stop)
        asked.join()
        psutil.Process(link.pid).resume()
        assert link.wait_until_healthy()
    finally:
        link.stop()


def test_an_orphan_of_a_killed_coordinator_is_ended(tmp_path: Path) -> None:
    """The next coordinator starts on the same database and must find nobody on it."""
    first = SuperLink(tmp_path, None)
    first.start()
    first.wait_until_healthy()
    assert first.pid is not None
    orphan = psutil.Process(first.pid)
    second = SuperLink(tmp_path, None)
    try:
        second.start()
        second.wait_until_healthy()
        assert not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE
        assert second.pid != first.pid
        assert second.poll() is None
    finally:
        second.stop()
        first.stop()
    assert not list((tmp_path / "superlink").glob("*.pid"))


def test_a_part_that_is_killed_while_it_starts_is_started_again(tmp_path: Path) -> None:
    """As the system does for want of memory; the coordinator does not end for it."""
    link = SuperLink(tmp_path, None)
    link.start()
    try:
        assert link.pid is not None
        first = link.pid
        psutil.Process(first).kill()
        link.wait_until_healthy()
        assert link.pid != first
        ahead = ProxyProcess(tmp_path, "127.0.0.1", 0, link.url, None)
        try:
            with ThreadPoolExecutor(1) as pool:
                opening = pool.submit(ahead.open)
                while ahead._child.pid is None:
                    time.sleep(0.005)
                psutil.Process(ahead._child.pid).kill()
                opening.result(SECONDS)
            assert ahead._child.poll() is None
        finally:
            ahead.close()
    finally:
        link.stop()


def test_a_superlink_that_cannot_start_says_why(tmp_path: Path) -> None:
    authority = create_authority(tmp_path / "certs")
    shutil.copy(authority.ca_file, tmp_path / "wrong.key")
    link = SuperLink(
        tmp_path / "state", ServerTls(authority.ca_file, authority.certificate_file, tmp_path / "wrong.key")
    )
    link.start()
    try:
        with pytest.raises(FlowerError, match="SuperLink ended with status") as refused:
            link.wait_until_healthy()
        assert "\n" not in str(refused.value)
    finally:
        link.stop()
    assert link.log_file.exists()
