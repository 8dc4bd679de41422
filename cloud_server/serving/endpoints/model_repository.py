"""Triton's model repository: here, the task registry. Loading is activating, unloading is removing."""

from __future__ import annotations

import json
from collections.abc import Mapping

import grpc

from fedstill.cloud_server.grpc.request_error import RequestError
from fedstill.cloud_server.serving.endpoints.refusals import bad
from fedstill.cloud_server.serving.server.served_tasks import ServedTasks, TrunkState
from fedstill.cloud_server.serving.tasks.registry import TaskVersion
from fedstill.protos import open_inference_pb2 as pb

CONFIG, FILE = "config", "file:"


def index(tasks: ServedTasks, request: pb.RepositoryIndexRequest) -> pb.RepositoryIndexResponse:
    """Every registered version: READY if it is served by a loaded trunk, else UNAVAILABLE with the reason."""
    check_repository(request.repository_name)
    served = tasks.served
    made = pb.RepositoryIndexResponse()
    for one in tasks.versions():
        reason = _why_not(one, served, tasks.states)
        if not (reason and request.ready):
            state = "UNAVAILABLE" if reason else "READY"
            made.models.add(name=one.name, version=str(one.version), state=state, reason=reason)
    return made


def _why_not(one: TaskVersion, served: Mapping[str, TaskVersion], trunks: Mapping[str, TrunkState]) -> str:
    known = served.get(one.name)
    if known is not None and known.version == one.version:
        state = trunks.get(one.trunk, TrunkState())
        if state.failed:
            return "could not be loaded"
        return "" if state.loaded else "not loaded"
    if one.trunk not in trunks:
        return "trained on another trunk"
    if one.active:
        return "not served yet"
    return f"version {known.version} is served" if known else "removed"


def check_repository(name: str) -> None:
    """Raises RequestError: there is one repository, without a name."""
    if name:
        raise bad("repository_name", "leave it empty: there is one repository, the task registry")


def wanted_version(request: pb.RepositoryModelLoadRequest) -> int | None:
    """The version that the request's ``config`` names; None if it names none. Raises RequestError."""
    field = f"parameters[{CONFIG!r}]"
    for name in request.parameters:
        if name.startswith(FILE):
            text = "models are not sent to the server: register a task (fedstill tasks add, RegisterTask)"
            raise RequestError(grpc.StatusCode.UNIMPLEMENTED, f"parameters[{name[:40]!r}]", text)
        if name != CONFIG:
            raise bad(f"parameters[{name[:40]!r}]", f"unknown; known is {CONFIG}")
    if CONFIG not in request.parameters:
        return None
    wanted = 'needs JSON such as {"version_policy": {"specific": {"versions": [2]}}}'
    try:
        plain = json.loads(request.parameters[CONFIG].string_param)
    except (ValueError, RecursionError):
        raise bad(field, wanted) from None
    policy = plain.get("version_policy") if isinstance(plain, dict) else None
    if not policy or not set(plain) <= {"version_policy", "name"}:
        raise bad(field, f"{wanted}: nothing else of a task is configured here")
    match policy:
        case {"specific": {"versions": [number]}}:
            return _whole(field, number)
        case _:
            raise bad(field, f"{wanted}: one version of a task is served at a time")


def _whole(field: str, number: object) -> int:
    digits = number if isinstance(number, str) else str(number) if type(number) is int else ""
    if not digits.isdecimal() or len(digits) > 10 or not 0 < int(digits) < 2**31:
        raise bad(field, "a version is a whole number from 1 on")
    return int(digits)
