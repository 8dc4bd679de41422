"""An unmodified tritonclient's session, in a process of its own: it claims the same protobuf package as we do.

    python triton_session.py HOST:PORT TASK IMAGE_SIZE [CA_FILE TOKEN]

Prints one JSON object.
"""

import json
import sys
from io import BytesIO

import numpy as np
import tritonclient.grpc as triton
from PIL import Image


def main(target, task, size, ca_file=None, token=None):
    client = triton.InferenceServerClient(target, ssl=ca_file is not None, root_certificates=ca_file)
    headers = {"authorization": f"Bearer {token}"} if token else None
    file = BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, "JPEG")

    encoded = triton.InferInput("encoded", [2], "BYTES")
    encoded.set_data_from_numpy(np.array([file.getvalue()] * 2, dtype=object))
    pixels = triton.InferInput("image", [1, *noise.shape], "UINT8")
    pixels.set_data_from_numpy(noise[None])
    tensor = triton.InferInput("image", [1, 3, size, size], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, 3, size, size), np.float32))

    def infer(one, **parameters):
        parameters = {"task": task, "latency_ms": 20_000.0, "utility": 0.5, **parameters}
        return client.infer("elastic_vit", [one], parameters=parameters, headers=headers, request_id="42")

    answers = [infer(one) for one in (encoded, pixels, tensor)]
    asked = [triton.InferRequestedOutput("label")]
    only = client.infer(
        "elastic_vit",
        [tensor],
        outputs=asked,
        parameters={"task": task, "latency_ms": 20_000},
        headers=headers,
    )
    refusals = {}
    for name, parameters in {
        "unknown": {"task": "no-such"},
        "late": {"latency_ms": 0},
        "bad": {"utility": "much"},
    }.items():
        try:
            infer(tensor, **parameters)
        except triton.InferenceServerException as error:
            refusals[name] = [error.status(), error.message()]
    metadata = client.get_model_metadata("elastic_vit", headers=headers, as_json=True)
    print(  # noqa: T201
        json.dumps(
            {
                "live": client.is_server_live(headers=headers),
                "ready": client.is_server_ready(headers=headers)
                and client.is_model_ready("elastic_vit", headers=headers),
                "server": client.get_server_metadata(headers=headers, as_json=True)["name"],
                "inputs": [one["name"] for one in metadata["inputs"]],
                "shapes": [list(answer.as_numpy("logits").shape) for answer in answers],
                "labels": [[label.decode() for label in answer.as_numpy("label")] for answer in answers],
                "identifier": answers[0].get_response().id,
                "parameters": sorted(answers[0].get_response().parameters),
                "only": [only.as_numpy("logits") is None, len(only.as_numpy("label"))],
                "refusals": refusals,
            }
        )
    )


main(sys.argv[1], sys.argv[2], int(sys.argv[3]), *sys.argv[4:])
