"""Requests to a SuperLink about nodes and runs, over Flower's Control API on loopback.

``flwr supernode register`` and the like do the same, but start a Python process for every request: seconds for each of
two hundred nodes. And their list of nodes leaves out the keys. This is the one file that knows this internal interface
of Flower 1.41.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import httpx
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListNodesResponse,
    ListRunsRequest,
    ListRunsResponse,
    RegisterNodeRequest,
    RegisterNodeResponse,
    StopRunRequest,
    StopRunResponse,
    UnregisterNodeRequest,
    UnregisterNodeResponse,
)
from google.protobuf.message import DecodeError, Message

from fedstill.cloud_server.auth.register import IssuedNode
from fedstill.common.flower_cli import FlowerError

ANSWER_SECONDS = 30.0
HEALTH_SECONDS = 5.0
PROTOBUF = "application/protobuf"
UNREGISTERED = "unregistered"
FINISHED = "finished"
MOST_RUNS = 200
"""In one answer."""
Answer = TypeVar("Answer", bound=Message)


@dataclass(frozen=True)
class FleetNode:
    """A node as the SuperLink sees it."""

    node_id: int
    name: str
    status: str
    """registered (never seen), online, offline or unregistered."""
    last_activated: str
    """ISO time, empty for one that was never online."""
    public_key: bytes
    """SubjectPublicKeyInfo in PEM."""


@dataclass(frozen=True)
class RunState:
    """Where a run stands."""

    status: str
    """pending, starting, running, or finished:completed, finished:failed, finished:stopped."""
    details: str

    @property
    def finished(self) -> bool:
        """Whether the run has ended."""
        return self.status.startswith(FINISHED)


class SuperLinkControl:
    """A client of one SuperLink on loopback; connects on first use."""

    def __init__(self, url: str, ca_file: Path | None) -> None:
        verify = ssl.create_default_context(cafile=str(ca_file)) if ca_file is not None else False
        self._http = httpx.Client(base_url=url, verify=verify, trust_env=False, timeout=ANSWER_SECONDS)

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def healthy(self) -> bool:
        """Whether ``GET /health`` answers."""
        try:
            return self._http.get("/health", timeout=HEALTH_SECONDS).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def nodes(self) -> tuple[FleetNode, ...]:
        """Every node, unregistered ones too."""
        answer = self._ask("list-nodes", ListNodesRequest(), ListNodesResponse)
        return tuple(
            FleetNode(node.node_id, node.name, node.status, node.last_activated_at, node.public_key)
            for node in answer.nodes_info
        )

    def register(self, name: str, public_key: bytes) -> int:
        """Make a key (PEM) known; the new node's id."""
        request = RegisterNodeRequest(public_key=public_key, name=name)
        return int(self._ask("register-node", request, RegisterNodeResponse).node_id)

    def unregister(self, node_id: int) -> None:
        """Unregister a node."""
        self._ask("unregister-node", UnregisterNodeRequest(node_id=node_id), UnregisterNodeResponse)

    def status(self, run_id: int) -> RunState:
        """Where a run stands."""
        answer = self._ask("list-runs", ListRunsRequest(run_id=run_id), ListRunsResponse)
        if run_id not in answer.run_dict:
            raise FlowerError(f"SuperLink knows no run {run_id}")
        state = answer.run_dict[run_id].status
        return RunState(f"{state.status}:{state.sub_status}".rstrip(":"), state.details)

    def unfinished(self) -> tuple[int, ...]:
        """The runs that have not ended."""
        found: list[int] = []
        seen, more = 0, True
        while more:
            request = ListRunsRequest(limit=MOST_RUNS, skip=seen)
            runs = self._ask("list-runs", request, ListRunsResponse).run_dict
            found += [run_id for run_id, run in runs.items() if run.status.status != FINISHED]
            seen, more = seen + len(runs), len(runs) == MOST_RUNS
        return tuple(found)

    def stop_run(self, run_id: int) -> None:
        """Stop a run."""
        if not self._ask("stop-run", StopRunRequest(run_id=run_id), StopRunResponse).success:
            raise FlowerError(f"SuperLink did not stop run {run_id}")

    def _ask(self, route: str, request: Message, answer: type[Answer]) -> Answer:
        try:
            response = self._http.post(
                f"/v1/control/{route}",
                content=request.SerializeToString(),
                headers={"content-type": PROTOBUF, "accept": PROTOBUF},
            )
        except httpx.TransportError as error:
            raise FlowerError(f"SuperLink does not answer {route} ({type(error).__name__})") from error
        if response.status_code != httpx.codes.OK:
            raise FlowerError(f"SuperLink refuses {route}: {_reason(response)}")
        result = answer()
        try:
            result.ParseFromString(response.content)
        except DecodeError as error:
            raise FlowerError(f"SuperLink answers {route} with what is no {answer.__name__}") from error
        return result


def synchronise(control: SuperLinkControl, issued: Iterable[IssuedNode]) -> dict[str, int]:
    """Register new nodes, unregister revoked ones; returns the ids of the registered ones, by name."""
    known = {node.public_key: node for node in control.nodes()}
    ids = {}
    for entry in issued:
        key = to_pem(entry.public_key)
        node = known.get(key)
        if node is None and not entry.revoked:
            ids[entry.name] = control.register(entry.name, key)
        elif node is not None and node.status != UNREGISTERED:
            if entry.revoked:
                control.unregister(node.node_id)
            else:
                ids[entry.name] = node.node_id
    return ids


def to_pem(public_key: str) -> bytes:
    """A public key in OpenSSH format as Flower stores it."""
    key = load_ssh_public_key(public_key.encode("ascii"))
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _reason(response: httpx.Response) -> str:
    """Flower's own message, if there is one."""
    try:
        said = json.loads(response.content)
    except (UnicodeDecodeError, json.JSONDecodeError):
        said = None
    detail = said.get("detail") if isinstance(said, dict) else None
    return f"{detail or 'no reason given'} (HTTP {response.status_code})"
