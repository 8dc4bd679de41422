"""One query in every way that KServe's own SDK has, in the environment of ``make clients``.

    python kserve_ways.py GRPC_HOST:PORT REST_URL TASK IMAGE_SIZE CA_FILE TOKEN

Prints one JSON object: the logits by way, and what the calls around queries say.
"""

import asyncio
import json
import ssl
import sys

import grpc
import httpx
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import RESTConfig


def request(model, size, *, binary, **parameters):
    values = np.random.default_rng(7).uniform(-1, 1, (2, 3, size, size)).astype(np.float32)
    tensor = InferInput("image", list(values.shape), "FP32")
    tensor.set_data_from_numpy(values, binary_data=binary)
    return InferRequest(model, [tensor], request_id="seven", parameters=parameters)


def read(answer):
    """Logits, and the labels beside them."""
    outputs = {one.name: one.as_numpy() for one in answer.outputs}
    assert answer.id == "seven", answer.id
    return outputs["logits"].tolist()


async def over_grpc(target, task, size, ca_file, token):
    headers = (("authorization", f"Bearer {token}"),)
    async with InferenceGRPCClient(target, use_ssl=True, root_certificates=ca_file) as client:
        ways = {}
        for binary in (True, False):
            asked = request(task, size, binary=binary, latency_ms=20_000)
            ways[f"grpc {'raw' if binary else 'contents'}"] = read(await client.infer(asked, headers=headers))
        asked = request(task, size, binary=True, latency_ms="20000.5")  # it knows no doubles
        ways["grpc number as text"] = read(await client.infer(asked, headers=headers))
        asked = request("elastic_vit", size, binary=True, task=task)
        ways["grpc old name"] = read(await client.infer(asked, headers=headers))
        try:
            await client.infer(request("no-such", size, binary=True), headers=headers)
            refused = "not refused"
        except grpc.RpcError as error:
            refused = error.code().name
        said = {
            "live": await client.is_server_live(headers=headers),
            "ready": await client.is_server_ready(headers=headers),
            "model": await client.is_model_ready(task, headers=headers),
            "unknown": await client.is_model_ready("no-such", headers=headers),
            "refused": refused,
        }
    return ways, said


async def over_rest(url, task, size, ca_file, token):
    client = InferenceRESTClient(RESTConfig(protocol="v2", verify=ssl.create_default_context(cafile=ca_file)))

    def headers():  # the client leaves its own header of a query in what it is given
        return {"authorization": f"Bearer {token}"}

    ways = {}
    for binary in (True, False):
        asked = request(task, size, binary=binary, latency_ms=20_000)
        answer = await client.infer(url, asked, model_name=task, headers=headers())
        ways[f"rest {'binary' if binary else 'json'}"] = read(answer)
    asked = request(task, size, binary=True, latency_ms="20000.5")
    ways["rest number as text"] = read(await client.infer(url, asked, model_name=task, headers=headers()))
    try:
        asked = request("no-such", size, binary=True)
        await client.infer(url, asked, model_name="no-such", headers=headers())
        refused = "not refused"
    except httpx.HTTPStatusError as error:
        refused = str(error.response.status_code)
    said = {
        "live": await client.is_server_live(url, headers=headers()),
        "ready": await client.is_server_ready(url, headers=headers()),
        "model": await client.is_model_ready(url, task, headers=headers()),
        "unknown": await client.is_model_ready(url, "no-such", headers=headers()),
        "refused": refused,
    }
    await client.close()
    return ways, said


async def main(target, url, task, size, ca_file, token):
    ways, over = await over_grpc(target, task, int(size), ca_file, token)
    more, web = await over_rest(url, task, int(size), ca_file, token)
    print(json.dumps({"ways": ways | more, "grpc": over, "rest": web}))  # noqa: T201


asyncio.run(main(*sys.argv[1:]))
