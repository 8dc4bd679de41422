"""A served task as clients of the protocol see it: its tensors, and its configuration in Triton's terms.

A request gives one of three inputs. Only one is described, because a client takes what is described as what to send:
raw pixels, of which nothing has to be known, in the size that is not resized much. Other sizes are taken as well.
"""

from __future__ import annotations

import json

from fedstill.cloud_server.serving.endpoints.image_inputs import LARGEST_REQUEST_IMAGES
from fedstill.cloud_server.serving.endpoints.infer_parameters import DEFAULT_LEVEL, LEVELS
from fedstill.cloud_server.serving.endpoints.model_names import MODEL, VERSION
from fedstill.cloud_server.serving.tasks.registry import TaskVersion
from fedstill.common.dataclass_codec import to_plain
from fedstill.models.vit.task_outputs import TENSORS, Output
from fedstill.protos import open_inference_pb2 as pb

PLATFORM = "fedstill_elastic_vit"
BACKEND = "fedstill"
KINDS = {"label": "BYTES", "labels": "BYTES"}
"""Of the outputs that are not FP32; these have one element for an image."""


def metadata(task: TaskVersion | None, image_size: int, width: int) -> pb.ModelMetadataResponse:
    """Of a task; None for the old name of all of them, which differ in their number of classes. width: of the trunk."""
    tensor = pb.ModelMetadataResponse.TensorMetadata
    output, size = _output(task, width)
    return pb.ModelMetadataResponse(
        name=task.name if task else MODEL,
        versions=[str(task.version) if task else VERSION],
        platform=PLATFORM,
        inputs=[tensor(name="pixels", datatype="UINT8", shape=[-1, image_size, image_size, 3])],
        outputs=[
            tensor(
                name=name, datatype=KINDS.get(name, "FP32"), shape=[-1, *([] if name in KINDS else [size])]
            )
            for name in TENSORS[output]
        ],
    )


def config(task: TaskVersion | None, image_size: int, width: int) -> pb.ModelConfig:
    """The same with sizes without the number of images, and how queries are batched."""
    output, size = _output(task, width)
    number = task.version if task else int(VERSION)
    made = pb.ModelConfig(
        name=task.name if task else MODEL,
        platform=PLATFORM,
        backend=BACKEND,
        version_policy=pb.ModelVersionPolicy(specific=pb.ModelVersionPolicy.Specific(versions=[number])),
        max_batch_size=LARGEST_REQUEST_IMAGES,
        input=[
            pb.ModelInput(
                name="pixels",
                data_type=pb.TYPE_UINT8,
                format=pb.ModelInput.FORMAT_NHWC,
                dims=[image_size, image_size, 3],
            )
        ],
        output=[
            pb.ModelOutput(name=name, data_type=pb.TYPE_STRING, dims=[1], reshape=pb.ModelTensorReshape())
            if name in KINDS
            else pb.ModelOutput(name=name, data_type=pb.TYPE_FP32, dims=[size])
            for name in TENSORS[output]
        ],
        dynamic_batching=pb.ModelDynamicBatching(
            priority_levels=LEVELS,
            default_priority_level=DEFAULT_LEVEL,
            default_queue_policy=pb.ModelQueuePolicy(
                timeout_action=pb.ModelQueuePolicy.REJECT,
                default_timeout_microseconds=round(1e3 * task.latency_ms) if task else 0,
                allow_timeout_override=True,
            ),
        ),
        model_transaction_policy=pb.ModelTransactionPolicy(decoupled=False),
    )
    if task is not None:
        for name, value in {
            "output": task.output,
            "class_names": task.class_names,
            "preprocess": to_plain(task.preprocess),
            "utility": task.utility,
            "accuracy": task.accuracy,
            "trunk": task.trunk,
        }.items():
            made.parameters[name].string_value = json.dumps(value)
    return made


def _output(task: TaskVersion | None, width: int) -> tuple[Output, int]:
    """What a task answers, and the length of its vectors; -1 if it is not known."""
    if task is None:
        return "classes", -1
    return task.output, width if task.output == "embedding" else len(task.class_names)
