"""Queries of one task by tritonclient, over gRPC and HTTP in turn, in a process of its own.

    python triton_crowd.py GRPC_HOST:PORT REST_HOST:PORT TASK COUNT IMAGE_SIZE

Prints a JSON list: of each query its version and number of logits, or the error.
"""

import json
import sys

import numpy as np
import tritonclient.grpc as grpc_client
import tritonclient.http as http_client
from tritonclient.utils import InferenceServerException


def main(grpc_target, rest_target, task, count, size):
    sides = [
        (grpc_client, grpc_client.InferenceServerClient(grpc_target)),
        (http_client, http_client.InferenceServerClient(rest_target)),
    ]
    found = []
    for number in range(count):
        module, client = sides[number % 2]
        pixels = module.InferInput("pixels", [1, size, size, 3], "UINT8")
        pixels.set_data_from_numpy(np.full((1, size, size, 3), number % 256, np.uint8))
        try:
            answer = client.infer(task, [pixels], parameters={"latency_ms": 20_000})
        except InferenceServerException as error:
            found.append([str(error)])
            continue
        said = answer.get_response()
        version = said["model_version"] if isinstance(said, dict) else said.model_version
        found.append([int(version), answer.as_numpy("logits").shape[1]])
    print(json.dumps(found))  # noqa: T201


main(*sys.argv[1:4], *map(int, sys.argv[4:]))
