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
from fedstill.protos import open_inference_pb2 as pb

PLATFORM = "fedstill_elastic_vit"
BACKEND = "fedstill"


def metadata(task: TaskVersion | None, image_size: int) -> pb.ModelMetadataResponse:
    """Of a task; None for the old name of all of them, which differ in their number of classes."""
    tensor = pb.ModelMetadataResponse.TensorMetadata
    classes = len(task.class_names) if task else -1
    return pb.ModelMetadataResponse(
        name=task.name if task else MODEL,
        versions=[str(task.version) if task else VERSION],
        platform=PLATFORM,
        inputs=[tensor(name="pixels", datatype="UINT8", shape=[-1, image_size, image_size, 3])],
        outputs=[
            tensor(name="logits", datatype="FP32", shape=[-1, classes]),
            tensor(name="label", datatype="BYTES", shape=[-1]),
        ],
    )


def config(task: TaskVersion | None, image_size: int) -> pb.ModelConfig:
    """The same with sizes without the number of images, and how queries are batched."""
    classes = len(task.class_names) if task else -1
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
            pb.ModelOutput(name="logits", data_type=pb.TYPE_FP32, dims=[classes]),
            pb.ModelOutput(name="label", data_type=pb.TYPE_STRING, dims=[1], reshape=pb.ModelTensorReshape()),
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
            "class_names": task.class_names,
            "preprocess": to_plain(task.preprocess),
            "utility": task.utility,
            "accuracy": task.accuracy,
            "trunk": task.trunk,
        }.items():
            made.parameters[name].string_value = json.dumps(value)
    return made
