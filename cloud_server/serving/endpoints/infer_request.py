"""From ModelInfer to a checked query; checks name the field, no state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fedstill.cloud_server.serving.endpoints import infer_parameters as parameters
from fedstill.cloud_server.serving.endpoints.image_inputs import read_images
from fedstill.cloud_server.serving.endpoints.model_names import AskedTask, Served, asked_task
from fedstill.cloud_server.serving.endpoints.refusals import bad
from fedstill.cloud_server.serving.server.request_images import ImageForm
from fedstill.cloud_server.serving.server.requests import Prepare
from fedstill.models.vit.task_outputs import TENSORS
from fedstill.protos import open_inference_pb2 as pb

MICROSECONDS_PER_MS = 1e3


@dataclass(frozen=True, slots=True)
class AskedOutput:
    """An output by name. classes: how many of the best classes, as text; 0 for the tensor itself."""

    name: str
    classes: int = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """By when an answer is wanted, and what it is worth. None: as the task says.

    timeout_ms: Triton's ``timeout``. remaining_ms: what is left of the call. factor: of the utility.
    """

    latency_ms: float | None = None
    utility: float | None = None
    timeout_ms: float | None = None
    remaining_ms: float | None = None
    factor: float = 1.0


@dataclass(frozen=True)
class InferQuery:
    """A checked request."""

    task: AskedTask
    images: tuple[Prepare, ...]
    limits: Limits
    outputs: tuple[AskedOutput, ...]
    warnings: tuple[str, ...]


def parse(
    request: pb.ModelInferRequest,
    served: Served,
    form_of: Callable[[str], ImageForm],
    remaining_seconds: float | None,
) -> InferQuery:
    """Check a request. Raises RequestError naming the field.

    form_of: called with a task's name, served or not. remaining_seconds: of the call; None for no end.
    """
    task = asked_task(request, served)
    parameters.refuse_shared_memory(request.parameters, "")
    limits = _limits(request.parameters, remaining_seconds)
    known = served.get(task.name)
    names = TENSORS[known.output if known else "classes"]
    outputs = tuple(_output(one, names) for one in request.outputs) or tuple(map(AskedOutput, names))
    if len({one.name for one in outputs}) < len(outputs):
        raise bad("outputs", "an output is asked for twice")
    images = read_images(request, form_of(task.name))
    warnings = [*parameters.misspelt(request.parameters), *([images.warning] if images.warning else [])]
    return InferQuery(task, images.prepared, limits, outputs, tuple(warnings))


def _limits(given: parameters.Parameters, remaining_seconds: float | None) -> Limits:
    longest = parameters.LONGEST_LATENCY_MS
    timeout = parameters.number(given, "timeout", MICROSECONDS_PER_MS * longest)
    return Limits(
        latency_ms=parameters.number(given, "latency_ms", longest),
        utility=parameters.number(given, "utility", parameters.LARGEST_UTILITY),
        timeout_ms=timeout / MICROSECONDS_PER_MS if timeout else None,  # 0: the task's own
        remaining_ms=None if remaining_seconds is None else 1e3 * remaining_seconds,
        factor=parameters.priority_factor(parameters.number(given, "priority", 2.0**64)),
    )


def _output(asked: pb.ModelInferRequest.InferRequestedOutputTensor, names: tuple[str, ...]) -> AskedOutput:
    if asked.name not in names:
        raise bad("outputs", f"{asked.name[:40]!r} is not one of {', '.join(names)}")
    owner = f"outputs[{asked.name!r}]."
    parameters.refuse_shared_memory(asked.parameters, owner)
    classes = parameters.number(asked.parameters, "classification", 2.0**31, owner) or 0.0
    if classes and asked.name != "logits":
        raise bad(f"{owner}parameters['classification']", "only logits can be given as classes")
    return AskedOutput(asked.name, int(classes))
