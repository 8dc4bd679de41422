"""Which task a request means: the model's name is the task's name, its version the registry's.

The name of the one model of old, with the task as a parameter, still works.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedstill.cloud_server.serving.endpoints.infer_parameters import value_of
from fedstill.cloud_server.serving.endpoints.refusals import bad, missing
from fedstill.cloud_server.serving.tasks.registry import TaskVersion
from fedstill.protos import open_inference_pb2 as pb

MODEL = "elastic_vit"
VERSION = "1"

Served = Mapping[str, TaskVersion]


@dataclass(frozen=True, slots=True)
class AskedTask:
    """A task by name, served or not. version: None for whichever is served."""

    name: str
    version: int | None = None


def find_model(served: Served, name: str, version: str, field: str = "name") -> TaskVersion | None:
    """The served version of a model; None for the old name, which stands for all tasks. Raises RequestError."""
    if name == MODEL and MODEL not in served:
        if version not in ("", VERSION):
            raise missing(_beside(field), f"{version[:16]!r} is not served ({MODEL} has version {VERSION})")
        return None
    known = served.get(name)
    if known is None:
        raise missing(field, f"{name[:64]!r} is not served (served: {', '.join(served)})")
    if version not in ("", str(known.version)):
        text = f"{version[:16]!r} is not served ({name} is served in version {known.version})"
        raise missing(_beside(field), text)
    return known


def asked_task(request: pb.ModelInferRequest, served: Served) -> AskedTask:
    """The task of an inference request. Raises RequestError."""
    task = value_of(request.parameters, "task")
    if request.model_name == MODEL and ("task" in request.parameters or MODEL not in served):
        find_model({}, MODEL, request.model_version, "model_name")
        if not isinstance(task, str) or not task:
            raise bad("parameters['task']", "needs a string, the task's name")
        return AskedTask(task)
    known = find_model(served, request.model_name, request.model_version, "model_name")
    if known is None:
        raise AssertionError("the old name was handled above")
    if task is not None and task != known.name:
        raise bad("parameters['task']", f"is not the model's name {known.name!r}: drop one of the two")
    return AskedTask(known.name, known.version if request.model_version else None)


def _beside(field: str) -> str:
    return {"name": "version", "model_name": "model_version"}[field]
